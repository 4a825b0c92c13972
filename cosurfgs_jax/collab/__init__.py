"""Collaboration of blocks: compression (LMC), and their distillation into one model across the mesh
(MAS).
"""
