"""Does the file compute what the model computes? Its logits against the float model's on the same images."""

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Parity

CAP_DB = 150.0  # equal logits would be infinite, which JSON cannot hold
FAINT = 6.1e-5  # the smallest number that fp16 holds with all its digits
IMAGES = 256  # for a share that agrees to within 2 points
LEAST_IMAGES = 64
_PIXELS = 2**22  # of all images: above 128 x 128 they take long, and fewer show the same


def images(height: int, width: int) -> int:
    """How many images of a size parity is measured on."""
    return min(IMAGES, max(LEAST_IMAGES, _PIXELS // (height * width)))


def faint(reference_NK: npt.NDArray[np.float32]) -> str:
    """What to tell where the float model's logits are too small for fp16; nothing otherwise."""
    largest = float(np.abs(reference_NK).max(initial=0.0))
    if largest >= FAINT:
        return ""
    return (
        f"the float model's own logits are at most {largest:.1g}, which fp16 and int8 do not hold: an untrained "
        "network's signal dies away like that; parity tells nothing before it is trained"
    )


def sqnr_db(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Signal to quantization noise ratio, 10 log10(sum ref^2 / sum (ref - other)^2), at most 150 dB."""
    ref, diff = reference.astype(np.float64), reference.astype(np.float64) - other
    signal, noise = float((ref**2).sum()), float((diff**2).sum())
    if noise <= signal * 10 ** (-CAP_DB / 10):
        return CAP_DB
    return float(10 * np.log10(max(signal, 1e-300) / noise))


def parity(reference_NK: npt.NDArray[np.float32], logits_NK: npt.NDArray[np.float32]) -> Parity:
    """Parity of an artifact's logits (N, K) with the float model's. Raises ValueError for NaN or other shapes."""
    if reference_NK.shape != logits_NK.shape:
        raise ValueError(f"the file gives logits of shape {logits_NK.shape}, the model {reference_NK.shape}")
    for name, logits in (("model", reference_NK), ("file", logits_NK)):
        if bad := int((~np.isfinite(logits)).any(1).sum()):
            raise ValueError(f"the {name} gives NaN or infinite logits for {bad} of {len(logits)} images")
    return Parity(
        images=len(reference_NK),
        sqnr_db=round(sqnr_db(reference_NK, logits_NK), 2),
        top1_agreement=float((reference_NK.argmax(1) == logits_NK.argmax(1)).mean()),
        largest_difference=float(np.abs(reference_NK - logits_NK).max()),
    )


def divergence(wanted_NK: npt.NDArray[np.float32], found_NK: npt.NDArray[np.float32]) -> float:
    """The mean Kullback-Leibler divergence, in nats, of the class probabilities from the wanted ones.

    Unlike the error of the logits it is not ruled by classes that are out of the question.
    """
    wanted, found = _log_softmax(wanted_NK), _log_softmax(found_NK)
    return float((np.exp(wanted) * (wanted - found)).sum(1).mean())


def _log_softmax(logits_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits_NK.astype(np.float64) - logits_NK.max(1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
