"""Training: from a configuration to a run folder with checkpoints, scores and TensorBoard files.

| module | content |
|---|---|
| run | `train`, the loop |
| loss | the losses as a module |
| log | TensorBoard |
| display | progress in the terminal |
| run_folder | the files of a run, and what may be resumed |
| distributed | several processes compute what one would |
| interruption | SIGTERM |
| series | several runs, one after the other |
"""

from blpseg.training.display import Step
from blpseg.training.run import TrainResult, open_data, train

__all__ = ["Step", "TrainResult", "open_data", "train"]
