"""What is made of a trained model: the merged model, scores, pictures, meshes and
exported files.
"""
