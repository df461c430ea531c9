"""The shapes of ResNet-50's parameters, without the network."""

from collections.abc import Iterator

Shape = tuple[int, ...]

STEM_WIDTH = 64
STAGE_BLOCKS = (3, 4, 6, 3)
EXPANSION = 4
CLASSES = 1000


def resnet50_shapes() -> list[Shape]:
    """Shapes in the order of the layers: 161 leaves, 25,557,032 parameters."""
    shapes = list(_normalised_convolution(7, 3, STEM_WIDTH))
    channels = STEM_WIDTH
    for stage, blocks in enumerate(STAGE_BLOCKS):
        width = STEM_WIDTH * 2**stage
        for block in range(blocks):
            shapes += _normalised_convolution(1, channels, width)
            shapes += _normalised_convolution(3, width, width)
            shapes += _normalised_convolution(1, width, EXPANSION * width)
            if block == 0:
                shapes += _normalised_convolution(1, channels, EXPANSION * width)
            channels = EXPANSION * width
    return [*shapes, (channels, CLASSES), (CLASSES,)]


def _normalised_convolution(size: int, inputs: int, outputs: int) -> Iterator[Shape]:
    """Kernel, and scale and bias of the batch normalisation behind it."""
    yield (size, size, inputs, outputs)
    yield (outputs,)
    yield (outputs,)
