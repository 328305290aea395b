"""Evaluation: scores of a trained model on images with masks, as tables, JSON and a page.

| module | content |
|---|---|
| run | `evaluate`, which `blpseg evaluate` calls |
| scores | `score_model`, and the records of an evaluation |
| outputs | the files that are written |
| tables | tables in the terminal |
| page | the HTML page |
"""

from blpseg.evaluation.run import evaluate
from blpseg.evaluation.scores import Evaluation, ImageExample, ImageScore, score_model

__all__ = ["Evaluation", "ImageExample", "ImageScore", "evaluate", "score_model"]
