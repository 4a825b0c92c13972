"""The native kernels (C++ and CUDA) and the bridge to them. Nothing outside this folder
knows C++.
"""
