"""Files of poses as other programs write them, by the formulas that their makers document."""

import numpy as np
from posed_scene import (
    FOCAL,
    HEIGHT,
    K1,
    K2,
    K3,
    PRINCIPAL,
    RADIAL_X,
    RADIAL_Y,
    WIDTH,
    row_of,
)
from scipy.spatial.transform import Rotation


def write_metashape(scene, path, *, transform="", reference="", more="", kind="frame", local=None):
    """Writes cameras.xml; `local` is (scale, rotation, translation) from the scene's frame to that
    of the chunk.
    """
    scale, rotation, translation = local or (1.0, np.eye(3), np.zeros(3))
    cameras = []
    for number, (name, pose) in enumerate(zip(scene.names, scene.poses, strict=True)):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation @ pose[:3, :3].T
        matrix[:3, 3] = scale * rotation @ scene.centers[number] + translation
        label = name.removesuffix(".jpg")
        cameras.append(
            f'<camera id="{number}" sensor_id="0" component_id="0" label="{label}">'
            f"<transform>{row_of(matrix)}</transform><reference x='1' y='2' z='3'/></camera>"
        )
    path.write_text(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<document version="2.0.0"><chunk label="Chunk 1" enabled="true"><sensors next_id="1">
<sensor id="0" label="unknown" type="{kind}"><resolution width="{WIDTH}" height="{HEIGHT}"/>
<calibration type="{kind}" class="initial"><resolution width="1" height="1"/><f>1</f></calibration>
<calibration type="{kind}" class="adjusted"><resolution width="{WIDTH}" height="{HEIGHT}"/>
<f>{FOCAL}</f><cx>{PRINCIPAL[0] - WIDTH / 2}</cx><cy>{PRINCIPAL[1] - HEIGHT / 2}</cy>
<k1>{K1}</k1><k2>{K2}</k2><k3>{K3}</k3><p1>{RADIAL_X}</p1><p2>{RADIAL_Y}</p2>{more}</calibration>
</sensor></sensors><components next_id="1"><component id="0" label="Component 1">{transform}
</component></components><cameras next_id="9" next_group_id="1"><group id="0" label="g">
{"".join(cameras[:9])}</group>{"".join(cameras[9:])}
<camera id="98" sensor_id="0" label="lost"/>
<camera id="99" sensor_id="0" label="off" enabled="false"><transform>{row_of(np.eye(4))}</transform>
</camera></cameras><reference>{reference}</reference></chunk></document>"""
    )
    return path


def _angles(pose):
    """Heading, pitch and roll of a pose, degrees."""
    turned = Rotation.from_matrix(pose[:3, :3].T @ np.diag([1.0, -1, -1]))
    heading, pitch, roll = turned.as_euler("ZXY", degrees=True)
    return -heading, pitch, roll


def write_list(scene, path, shift=(0.0, 0.0, 0.0)):
    lines = ["#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    u, v = (PRINCIPAL[0] - WIDTH / 2) / WIDTH, (PRINCIPAL[1] - HEIGHT / 2) / WIDTH
    for name, pose, center in zip(scene.names, scene.poses, scene.centers, strict=True):
        values = [*(center + shift), *_angles(pose), FOCAL / WIDTH * 36, u, v]
        values += [K1, K2, K3, 0, RADIAL_X, RADIAL_Y]
        lines.append(",".join([name, *(f"{value:.15e}" for value in values)]))
    path.write_text("\r\n".join(lines))
    return path


def write_pix4d(scene, folder, offset=None, system=""):
    folder.mkdir(exist_ok=True)
    lines = [
        "fileName imageWidth imageHeight",
        "camera matrix K [3x3]",
        "radial distortion [3x1]",
        "tangential distortion [2x1]",
        "camera position t [3x1]",
        "camera rotation R [3x3]",
        "camera model m = K [R|-Rt] X",
        "",
    ]
    matrix = np.array([[FOCAL, 0, PRINCIPAL[0]], [0, FOCAL, PRINCIPAL[1]], [0, 0, 1]])
    for name, pose, center in zip(scene.names, scene.poses, scene.centers, strict=True):
        lines += [f"{name} {WIDTH} {HEIGHT}", *map(row_of, matrix), row_of([K1, K2, K3])]
        # T1 goes with r^2 + 2 y^2 in y, and T2 with r^2 + 2 x^2 in x.
        lines += [row_of([RADIAL_Y, RADIAL_X]), row_of(center), *map(row_of, pose[:3, :3])]
    (folder / "p_calibrated_camera_parameters.txt").write_text("\n".join(lines))
    if offset is not None:
        (folder / "p_offset.xyz").write_text(row_of(offset))
    if system:
        (folder / "p_wkt.prj").write_text(system)
    return folder


def write_xmp(scene, folder, is_attribute=False):
    """XMP files; rotation and coefficients are attributes in some versions."""
    u, v = (PRINCIPAL[0] - WIDTH / 2) / WIDTH, (PRINCIPAL[1] - HEIGHT / 2) / WIDTH
    folder.mkdir()
    for name, pose, center in zip(scene.names, scene.poses, scene.centers, strict=True):
        values = {
            "Rotation": row_of(pose[:3, :3]),
            "DistortionCoeficients": row_of([K1, K2, K3, 0, RADIAL_X, RADIAL_Y]),
        }
        inner = "".join(f"<xcr:{key}>{text}</xcr:{key}>" for key, text in values.items())
        outer = "".join(f' xcr:{key}="{text}"' for key, text in values.items())
        (folder / name).with_suffix(".xmp").write_text(
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
            'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
            'xmlns:xcr="http://www.capturingreality.com/ns/xcr/1.1#" xcr:Version="3" '
            'xcr:DistortionModel="brown3t2" xcr:Skew="0" xcr:AspectRatio="1" '
            f'xcr:FocalLength35mm="{FOCAL / WIDTH * 36!r}" xcr:PrincipalPointU="{u!r}" '
            f'xcr:PrincipalPointV="{v!r}"{outer if is_attribute else ""}>'
            f"<xcr:Position>{row_of(center)}</xcr:Position>{'' if is_attribute else inner}"
            "</rdf:Description></rdf:RDF></x:xmpmeta>"
        )
    return folder
