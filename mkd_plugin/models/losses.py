"""Losses, L in the equation: one value per token; the objective averages over its region."""

from __future__ import annotations

import math

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.nn import functional as F

from mkd_plugin.registry import MODELS
from mkd_plugin.structures import RegionTokens

TORCH_LOSSES = (nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)  # the objective sets reduction='none'

for loss in TORCH_LOSSES:
    MODELS.register_module(module=loss)


@MODELS.register_module()
class CosineLoss(nn.Module):
    """1 − cosine similarity of prediction and target per token (dBOT's symmetric variant, MVP, MaskFeat)."""

    def forward(self, prediction_BRD: Tensor, target_BRD: Tensor) -> Tensor:
        """Compute the loss, (B, R)."""
        return 1 - F.cosine_similarity(prediction_BRD, target_BRD, dim=-1)


@MODELS.register_module()
class CosineSmoothL1Loss(nn.Module):
    """Weighted sum of 1 − cosine similarity and smooth L1, the mean over channels (UNIC ½ and ½, Theia 0.9 and 0.1).

    Args:
        cosine: Weight of the cosine term.
        smooth_l1: Weight of smooth L1.
        beta: Difference below which smooth L1 is quadratic.
        whole_image: Take the cosine of all tokens of an image as one vector, as Theia does, not of each token.
    """

    wants_region = True

    def __init__(
        self, *, cosine: float = 0.5, smooth_l1: float = 0.5, beta: float = 1.0, whole_image: bool = False
    ) -> None:
        super().__init__()
        self.cosine, self.smooth_l1, self.beta, self.whole_image = cosine, smooth_l1, beta, whole_image

    def forward(self, prediction_BRD: Tensor, target_BRD: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Compute the loss, (B, R). ``region`` marks padding tokens, which do not count in the cosine of an image."""
        near_BR = F.smooth_l1_loss(prediction_BRD, target_BRD, beta=self.beta, reduction='none').mean(-1)
        if not self.whole_image:
            similarity = F.cosine_similarity(prediction_BRD, target_BRD, dim=-1)
        else:
            if region is not None and region.weight_BR is not None:
                prediction_BRD, target_BRD = (x * region.weight_BR.unsqueeze(-1) for x in (prediction_BRD, target_BRD))
            similarity = F.cosine_similarity(prediction_BRD.flatten(1), target_BRD.flatten(1)).unsqueeze(1)
        return self.cosine * (1 - similarity) + self.smooth_l1 * near_BR


@MODELS.register_module()
class TokenInfoNCE(nn.Module):
    """InfoNCE between the tokens of an image (ConMIM, MimCo).

    Cross entropy over the cosine similarities of a prediction to all targets of the region in the same image; the target
    of the same token is the positive, the others are negatives. If images hide different numbers of patches, padding tokens
    are no negatives.

    Args:
        temperature: Divisor of the cosine similarities.

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    wants_region = True

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f'temperature={temperature}: it must be positive.')
        self.temperature = temperature

    def forward(self, prediction_BRD: Tensor, target_BRD: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Compute the loss, (B, R).

        Args:
            prediction_BRD: Predictions.
            target_BRD: Targets.
            region: Marks padding tokens, which get a finite loss of no meaning; None for no padding.
        """
        prediction_BRD, target_BRD = F.normalize(prediction_BRD, dim=-1), F.normalize(target_BRD, dim=-1)
        logits_BRR = prediction_BRD @ target_BRD.transpose(1, 2) / self.temperature
        if region is not None and region.weight_BR is not None:
            # a padding token keeps itself, or its row would have no logit at all
            itself_RR = torch.eye(logits_BRR.shape[1], dtype=torch.bool, device=logits_BRR.device)
            padding_BRR = (region.weight_BR == 0).unsqueeze(1) & ~itself_RR
            logits_BRR = logits_BRR.masked_fill(padding_BRR, float('-inf'))
        places_BR = torch.arange(logits_BRR.shape[1], device=logits_BRR.device).expand(len(logits_BRR), -1)
        return F.cross_entropy(logits_BRR.transpose(1, 2), places_BR, reduction='none')


@MODELS.register_module()
class TokenCrossEntropy(nn.Module):
    """Cross entropy per token, for targets that are class indices."""

    wants_classes = True

    def forward(self, scores_BRC: Tensor, classes_BR1: Tensor) -> Tensor:
        """Compute the loss, (B, R)."""
        return F.cross_entropy(scores_BRC.transpose(1, 2), classes_BR1.squeeze(-1), reduction='none')


@MODELS.register_module()
class RelationKL(nn.Module):
    """KL(softmax(target) ‖ softmax(prediction)) of each row of token relations (TinyMIM, MiniLM v2).

    Use it with the taps ``logit:i`` and ``value:i``, which divide by √K.
    """

    def forward(self, prediction_BHRR: Tensor, target_BHRR: Tensor) -> Tensor:
        """Compute the loss of each query, summed over keys, (B, H, R)."""
        wanted_BHRR = target_BHRR.log_softmax(dim=-1)
        return F.kl_div(prediction_BHRR.log_softmax(dim=-1), wanted_BHRR, reduction='none', log_target=True).sum(-1)


@MODELS.register_module()
class GramLoss(nn.Module):
    """Squared differences between the cosine similarities of an image's tokens (Gram anchoring, DINOv3).

    Use it without a head. If images have different numbers of tokens, padding tokens do not count.
    """

    wants_region = True

    def forward(self, prediction_BRD: Tensor, target_BRD: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Compute the mean over all tokens of the image for each token, (B, R).

        Args:
            prediction_BRD: The student's tokens.
            target_BRD: The teacher's tokens.
            region: Marks padding tokens; None for no padding.
        """
        tokens = (F.normalize(x, dim=-1) for x in (prediction_BRD, target_BRD))
        student_BRR, teacher_BRR = (x @ x.transpose(1, 2) for x in tokens)
        squares_BRR = (student_BRR - teacher_BRR).square()
        if region is None or region.weight_BR is None:
            return squares_BRR.mean(-1)
        count_B1 = region.weight_BR.sum(1, keepdim=True).clamp(min=1)
        return (squares_BRR * region.weight_BR.unsqueeze(1)).sum(-1) / count_B1


@MODELS.register_module()
class UniGradLoss(nn.Module):
    """‖p − t‖² + weight · pᵀ C p, divided by the width, where C is the mean of t·tᵀ over all tokens (Siamese Image Modeling).

    The second term keeps the targets' directions apart without negatives. C is that of all processes. If images have different
    numbers of tokens, padding tokens do not count.

    Args:
        weight: Weight of the second term.
    """

    wants_region = True

    def __init__(self, *, weight: float = 0.02) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction_BRD: Tensor, target_BRD: Tensor, region: RegionTokens | None = None) -> Tensor:
        """Compute the loss, (B, R).

        Args:
            prediction_BRD: Predictions, standardised by the objective's ``normalize_prediction``.
            target_BRD: Targets, standardised alike.
            region: Marks padding tokens; None for no padding.
        """
        weight_BR = None if region is None else region.weight_BR
        if weight_BR is None:
            weight_BR = target_BRD.new_ones(target_BRD.shape[:2])
        sums_DD = torch.einsum('brd,bre,br->de', target_BRD, target_BRD, weight_BR)
        all_reduce(sums_DD, 'mean')
        all_reduce(count := weight_BR.sum(), 'mean')
        correlation_DD = sums_DD / count.clamp(min=1)
        apart_BRD = prediction_BRD * (prediction_BRD @ correlation_DD)
        return ((prediction_BRD - target_BRD).square() + self.weight * apart_BRD).mean(-1)


@MODELS.register_module()
class PrototypeCrossEntropy(nn.Module):
    """Cross entropy between the target's and the prediction's assignments to learned prototypes (MSN), for ``region='cls'``.

    An assignment is the softmax of the cosine similarities to all prototypes, divided by a temperature. So that all prototypes
    stay in use, the divergence of this process's mean assignment from the uniform one is added.

    Args:
        width: Channels of prediction and target; the objective sets it.
        prototypes: Number of prototypes.
        temperature: Divisor of the similarities.
        sharpening: Factor of the temperature of the target's assignment.
        spread: Weight of the divergence, log(prototypes) − entropy.

    Raises:
        ValueError: A temperature is not positive, or there are fewer than two prototypes.
    """

    per_process = True

    def __init__(
        self,
        *,
        width: int,
        prototypes: int = 1024,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        if prototypes < 2 or min(temperature, sharpening) <= 0:
            raise ValueError(
                f'prototypes={prototypes}, temperature={temperature}, sharpening={sharpening}: use at least two prototypes, '
                'and positive temperatures.'
            )
        self.temperature, self.sharpening, self.spread = temperature, sharpening, spread
        self.prototypes = nn.Parameter(torch.empty(prototypes, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new prototypes."""
        bound = self.prototypes.shape[1] ** -0.5
        nn.init.uniform_(self.prototypes, -bound, bound)

    def forward(self, prediction_BRD: Tensor, target_BRD: Tensor) -> Tensor:
        """Compute the loss, (B, R)."""
        prototypes_CD = F.normalize(self.prototypes, dim=-1) / self.temperature
        found_BRC = (F.normalize(prediction_BRD, dim=-1) @ prototypes_CD.T).log_softmax(-1)
        wanted_BRC = (F.normalize(target_BRD, dim=-1) @ prototypes_CD.detach().T / self.sharpening).softmax(-1)
        log_mean_C = found_BRC.flatten(0, 1).logsumexp(0) - math.log(found_BRC[..., 0].numel())
        divergence = (log_mean_C.exp() * log_mean_C).sum() + math.log(len(log_mean_C))
        return self.spread * divergence - (wanted_BRC * found_BRC).sum(-1)


@MODELS.register_module()
class ContrastedCrossEntropy(TokenCrossEntropy):
    """Cross entropy per token, plus InfoNCE between the mean scores of an image's two masks (SplitMask).

    The positive of an image under one mask is the same image under the other; the negatives are the other images of this
    process under both. The number of tokens must be the same in all images.

    Args:
        temperature: Divisor of the cosine similarities of mean scores.
        weight: Weight of the InfoNCE.

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    per_image = 2

    def __init__(self, *, temperature: float = 0.1, weight: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f'temperature={temperature}: it must be positive.')
        self.temperature, self.weight = temperature, weight

    def forward(self, scores_BRC: Tensor, classes_BR1: Tensor) -> Tensor:
        """Compute the loss, (B, R); rows 2i and 2i + 1 are the masks of image i."""
        images_BC = F.normalize(scores_BRC.mean(1), dim=-1)
        itself_BB = torch.eye(len(images_BC), dtype=torch.bool, device=images_BC.device)
        logits_BB = (images_BC @ images_BC.T / self.temperature).masked_fill(itself_BB, float('-inf'))
        other_B = torch.arange(len(images_BC), device=images_BC.device) ^ 1
        contrast_B = F.cross_entropy(logits_BB, other_B, reduction='none')
        return super().forward(scores_BRC, classes_BR1) + self.weight * contrast_B.unsqueeze(1)
