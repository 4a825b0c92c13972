"""Training: the state, a pure step, the loop around it, checkpoints, and what is made of a trained
model.
"""
