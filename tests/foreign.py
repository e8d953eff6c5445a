"""Warnings of the real engines that are not ours to mend, for `filterwarnings`."""

FOREIGN = (
    "ignore:DTensor random operators may not have complete support:UserWarning",
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # dynamo looks at it
    "ignore:Your compiler for AOTAutograd is returning a function:UserWarning",
    "ignore:To get the last learning rate computed by the scheduler:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
)
