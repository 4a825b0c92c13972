"""Which blocks form one model at each stage, and how their devices exchange."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cosurfgs_jax.collab.exchange import Exchange, Grouping, plan_exchange
from cosurfgs_jax.distributed.layout import Layout
from cosurfgs_jax.partition import Partition
from cosurfgs_jax.training.partitioned_scene import PartitionedScene
from cosurfgs_jax.training.run import Run


class Plans(NamedTuple):
    """The groupings of a run.

    In a `whole_*` grouping every device draws for every other one of the group: for teachers and
    scores, which must lack nothing and take no gradient.
    """

    alone: Grouping  # every block is a model by itself
    edge: Grouping
    cloud: Grouping
    whole_edge: Grouping
    whole_cloud: Grouping


def has_edges(partition: Partition) -> bool:
    """Whether edges are models of their own: neither one that is all, nor each a single block."""
    return 1 < partition.num_edges < partition.num_blocks


def make_plans(run: Run) -> Plans:
    """The groupings of a run."""
    partition = run.partitioned.partition
    layout = run.layout
    edges = partition.edge_of_block
    shape = layout.mesh.devices.shape
    num_devices = layout.num_devices
    max_partners = run.settings.mas.max_partners
    needs, edge_needs = _device_needs(run.partitioned, layout)
    # Edges lie within rows of the mesh unless one row holds several edges; then the row is the
    # group of devices, and views are told apart by their blocks' edges.
    is_within_rows = _is_edge_in_a_row(edges, shape[1] * layout.blocks_per_device)
    devices = tuple((device,) for device in range(num_devices))
    one_model = np.zeros(len(edges), np.int64)
    return Plans(
        alone=Grouping(Exchange(("device",), (), devices, devices), np.arange(len(edges))),
        edge=Grouping(plan_exchange(shape, edge_needs, is_within_rows, max_partners), edges),
        cloud=Grouping(plan_exchange(shape, needs, False, max_partners), one_model),
        whole_edge=Grouping(
            plan_exchange(shape, edge_needs, is_within_rows, max_partners, num_devices), edges
        ),
        whole_cloud=Grouping(
            plan_exchange(shape, needs, False, max_partners, num_devices), one_model
        ),
    )


def _device_needs(
    partitioned: PartitionedScene, layout: Layout
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """How much of the views of device i lies in the cells of device j: of all cells, and of those
    of the same edge.
    """
    edges = partitioned.partition.edge_of_block
    needs = np.zeros((layout.num_devices, layout.num_devices))
    edge_needs = np.zeros_like(needs)
    for block in partitioned.blocks:
        rows = partitioned.partition.coverage[block.views]
        cells = np.unique(rows.indices)
        coverage = np.bincount(rows.indices, rows.data, len(edges))
        for cell, fraction in zip(cells.tolist(), coverage[cells], strict=True):
            pair = layout.device_of(block.number), layout.device_of(cell)
            needs[pair] += fraction
            edge_needs[pair] += fraction * (edges[cell] == edges[block.number])
    return needs, edge_needs


def _is_edge_in_a_row(edges: np.ndarray, blocks_per_row: int) -> bool:
    row_of_block = np.arange(len(edges)) // blocks_per_row
    return all(len(np.unique(row_of_block[edges == edge])) == 1 for edge in np.unique(edges))
