"""From a folder of photographs to a dataset: EXIF data, structure from motion (SfM) with pycolmap,
and the place on the map.
"""
