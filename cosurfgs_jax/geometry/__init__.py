"""Rotations, cameras, spherical harmonics and the frame of a scene."""
