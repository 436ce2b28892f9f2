"""GemNet-OC as published, with triplets and quadruplets listed and padded: the yardstick of the step benchmark.

It takes the parameters of a model of this package and none of its layers, so that what makes the model fast does not
move its yardstick.
"""
