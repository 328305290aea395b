"""The operators ``torch.ops.blpseg.*``: every schema, in one place.

csrc/ attaches the C++ and CUDA kernels to these names, ``blpseg_ops/triton`` the Triton kernels.
``blpseg_ops/ops`` attaches the fallbacks, fake kernels, gradients and autocast rules. An operator
that returns more than its public function returns what backward needs and cannot recompute cheaply.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("blpseg", "DEF")

for _schema in (
    # log_denominator [N, h, w]: log((Z + eps T) / w_bb) of every query pixel b.
    "lam(Tensor features, Tensor values, float sigma, float eps, float scale, int? radius=None)"
    " -> (Tensor output, Tensor log_denominator)",
    "lam_backward(Tensor grad_output, Tensor features, Tensor values, Tensor output,"
    " Tensor log_denominator, float sigma, float eps, float scale, int? radius=None)"
    " -> (Tensor grad_features, Tensor grad_values)",
    # lam with queries [N, D, H, W]; inv_two_sigma_sq [N]. log_denominator [N, H, W]:
    # log((Z + eps T) / w_nb) of every query b, where n is the key nearest to it.
    "lam_two_grids(Tensor queries, Tensor features, Tensor values, Tensor inv_two_sigma_sq,"
    " float eps, float scale, float? radius=None) -> (Tensor output, Tensor log_denominator)",
    "lam_two_grids_backward(Tensor grad_output, Tensor queries, Tensor features, Tensor values,"
    " Tensor output, Tensor log_denominator, Tensor inv_two_sigma_sq, float eps, float scale,"
    " float? radius=None) -> (Tensor grad_queries, Tensor grad_features, Tensor grad_values,"
    " Tensor grad_inv_two_sigma_sq)",
    # weight_sum [N]: the sum of the BLP weights per image. _saved_pixels.py describes saved_pixels.
    "blp_loss(Tensor seg_logits, Tensor annotation_logits, Tensor target, float gamma,"
    " int ignore_index) -> (Tensor loss, Tensor weight_sum, Tensor saved_pixels)",
    "blp_loss_backward(Tensor grad_loss, Tensor seg_logits, Tensor annotation_logits,"
    " Tensor target, Tensor weight_sum, Tensor saved_pixels, float gamma, int ignore_index)"
    " -> Tensor",
    # weight_sum []: the sum of the class weights over all pixels of the batch.
    "annotation_loss(Tensor annotation_logits, Tensor target, float unlabeled_weight,"
    " int ignore_index) -> (Tensor loss, Tensor weight_sum, Tensor saved_pixels)",
    "annotation_loss_backward(Tensor grad_loss, Tensor annotation_logits, Tensor target,"
    " Tensor weight_sum, Tensor saved_pixels, float unlabeled_weight, int ignore_index) -> Tensor",
    "pseudo_labels(Tensor seg_logits, Tensor target, Tensor class_present, float threshold,"
    " int ignore_index) -> Tensor",
    # Both losses' weight sums, [N] and []; pseudo_labels [N, H, W], or [0] without class_present.
    "blp_objective(Tensor seg_logits, Tensor annotation_logits, Tensor target,"
    " Tensor? class_present, float gamma, float unlabeled_weight, float threshold,"
    " int ignore_index) -> (Tensor blp_loss, Tensor annotation_loss, Tensor blp_weight_sum,"
    " Tensor annotation_weight_sum, Tensor pseudo_labels, Tensor blp_saved_pixels,"
    " Tensor annotation_saved_pixels)",
    # blp_target: the target, or the pseudo labels.
    "blp_objective_backward(Tensor grad_blp_loss, Tensor grad_annotation_loss, Tensor seg_logits,"
    " Tensor annotation_logits, Tensor blp_target, Tensor target, Tensor blp_weight_sum,"
    " Tensor annotation_weight_sum, Tensor blp_saved_pixels, Tensor annotation_saved_pixels,"
    " float gamma, float unlabeled_weight, int ignore_index)"
    " -> (Tensor grad_seg_logits, Tensor grad_annotation_logits)",
    "upsample_argmax(Tensor logits, SymInt[2] size) -> Tensor",
):
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
