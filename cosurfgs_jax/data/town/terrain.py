"""The hills of the generated town: a smooth height function that rays can be cut with exactly.

Lengths are metres in the *local* frame of the town: x east, y north, z up, origin at its centre at
mean height."""

import dataclasses

import numpy as np

# Wavelength and amplitude of each plane wave. The slopes add up to at most 0.36 (20 degrees); rays
# of the flight are steeper (at least 21 degrees), so that the ground never hides itself and every
# ray meets it once.
_WAVES_M = ((210.0, 4.2), (125.0, 2.0), (74.0, 0.9), (47.0, 0.4))


@dataclasses.dataclass(frozen=True)
class Terrain:
    """A sum of plane waves.

    | field        | shape    | unit                          |
    |--------------|----------|-------------------------------|
    | `wave_xy`    | f64[n,2] | radians per metre             |
    | `phases`     | f64[n]   | radians                       |
    | `amplitudes` | f64[n]   | metres                        |
    """

    wave_xy: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray

    @property
    def max_curvature(self) -> float:
        """Bound on the second derivative of the height in any direction, 1/m."""
        return float(np.sum(self.amplitudes * np.sum(self.wave_xy**2, axis=1)))

    def heights(self, x, y):
        """Height at x, y (m, arrays that broadcast), in the precision of the arguments."""
        total = 0
        for (wave_x, wave_y), phase, amplitude in zip(
            self.wave_xy, self.phases, self.amplitudes, strict=True
        ):
            total = total + float(amplitude) * np.sin(
                float(wave_x) * x + float(wave_y) * y + float(phase)
            )
        return total

    def heights_and_slopes(self, x, y):
        """Height at x, y and its derivatives along x and y."""
        height = 0
        slope_x = 0
        slope_y = 0
        for (wave_x, wave_y), phase, amplitude in zip(
            self.wave_xy, self.phases, self.amplitudes, strict=True
        ):
            angle = float(wave_x) * x + float(wave_y) * y + float(phase)
            height = height + float(amplitude) * np.sin(angle)
            rate = float(amplitude) * np.cos(angle)
            slope_x = slope_x + float(wave_x) * rate
            slope_y = slope_y + float(wave_y) * rate
        return height, slope_x, slope_y

    def normals(self, x, y) -> np.ndarray:
        """Unit normals at x, y: [..., 3], upwards."""
        slope_x = 0
        slope_y = 0
        for (wave_x, wave_y), phase, amplitude in zip(
            self.wave_xy, self.phases, self.amplitudes, strict=True
        ):
            rate = float(amplitude) * np.cos(float(wave_x) * x + float(wave_y) * y + float(phase))
            slope_x = slope_x + float(wave_x) * rate
            slope_y = slope_y + float(wave_y) * rate
        length = np.sqrt(slope_x**2 + slope_y**2 + 1)
        return np.stack([-slope_x / length, -slope_y / length, 1 / length], axis=-1)

    def cut_rays(self, center: np.ndarray, rays, iterations: int = 6):
        """Where rays from one point above the ground meet it: the factor t of center + t ray.

        Args:
            center: f64[3] local frame.
            rays: three arrays of one shape: x, y, z of the directions, any length, pointing down.
            iterations: Newton steps, from a start at mean height. A step squares the error.
        Returns:
            t in the shape of the rays.
        """
        ray_x, ray_y, ray_z = rays
        factor = -center[2] / ray_z
        for _ in range(iterations):
            factor = self.newton_step(center, rays, factor)
        return factor

    def newton_step(self, center: np.ndarray, rays, factor):
        """One Newton step of `cut_rays` from a given factor."""
        ray_x, ray_y, ray_z = rays
        height, slope_x, slope_y = self.heights_and_slopes(
            center[0] + factor * ray_x, center[1] + factor * ray_y
        )
        above = center[2] + factor * ray_z - height
        return factor - above / (ray_z - slope_x * ray_x - slope_y * ray_y)


def make_terrain(seed: int) -> Terrain:
    """Hills with random directions and phases."""
    rng = np.random.default_rng([seed, 0])
    lengths, amplitudes = np.array(_WAVES_M).T
    # Directions are spread over the half circle so that no two waves make one long furrow.
    angles = np.pi * (np.arange(len(lengths)) * 0.382 + rng.uniform(0, 1)) + rng.uniform(
        -0.2, 0.2, len(lengths)
    )
    wave_numbers = 2 * np.pi / lengths
    wave_xy = np.stack([wave_numbers * np.cos(angles), wave_numbers * np.sin(angles)], axis=1)
    return Terrain(wave_xy, rng.uniform(0, 2 * np.pi, len(lengths)), amplitudes)
