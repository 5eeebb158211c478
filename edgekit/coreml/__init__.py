"""Core ML programs made and compressed on any machine, with coremltools and edgekit's own reference for measuring.

`program` makes the float program, `encode` stores an array of weights, `layers` measures what that does to each
layer, `plan` says what a precision means and which layers are left, `activations` finds the ranges of int8.
"""
