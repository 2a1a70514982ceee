"""Nodes of clusters/local-elastic.yaml, whose ``provider`` names this class."""

from sid_ray.ray_setup.ray_private import local_nodes

LocalNodes = local_nodes()
