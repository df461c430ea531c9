import math

from experiments.resnet50_shapes import resnet50_shapes


def test_leaves_and_parameters_are_those_of_resnet50():
    shapes = resnet50_shapes()
    assert len(shapes) == 161
    assert sum(map(math.prod, shapes)) == 25_557_032
