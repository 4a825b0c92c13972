"""The trainable model of a block: surfels, their density control and optimizer, and the exposure of
photographs.
"""
