"""Files of other programs: PLY, splats, points, meshes, cameras, GeoTIFF. Readers and writers know
no training.
"""
