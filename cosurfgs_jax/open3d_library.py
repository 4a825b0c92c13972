"""The optional package open3d, which fuses, simplifies and measures meshes."""

from cosurfgs_jax.errors import InputError


def import_open3d():
    """The open3d module.

    Raises:
        InputError: it is not installed, or a system library that it needs is missing.
    """
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise InputError('open3d is needed for meshes: pip install "cosurfgs_jax[mesh]"') from error
    except ImportError as error:
        raise InputError(
            f"open3d is installed but cannot be loaded ({error}); install that system library, "
            "on Debian and Ubuntu: apt-get install libusb-1.0-0 libgl1 libgomp1"
        ) from error
    return open3d
