"""Private parts of Ray and DeepSpeed are named in one file for each, which says why.

What counts as private: a module or attribute whose name begins with an underscore, Ray's
autoscaler and generated messages, and what DeepSpeed's documentation does not have.
"""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import sid_ray

PACKAGE = Path(sid_ray.__file__).parent
HOMES = {
    "ray_setup/ray_private.py",
    "actors/ray_train_private.py",
    "distributed/deepspeed_private.py",
    "sweep/population.py",  # Ray Tune's schedulers
}
PUBLIC = (  # what is written about for users
    r"ray(\.(data|exceptions|serve(\.(exceptions|handle|schema))?|train|train\.torch|tune(\.\w+)*|util(\.\w+)*|job_submission))?",
    r"ray\.dashboard\.modules\.job\.sdk",
    r"deepspeed(\.accelerator|\.comm|\.zero|\.utils)?",
)
LIBRARIES = ("ray", "deepspeed")
MEMBERS = {  # private members that only the files above may name, and where the library has them
    "ray/train/v2/_internal/execution/scaling_policy/elastic.py": (
        "_autoscaling_coordinator", "_count_possible_workers", "_get_reserved_resources",
        "_requester_id",
    ),
    "ray/train/v2/_internal/execution/scaling_policy/fixed.py": ("_maybe_send_resource_request",),
    "ray/train/v2/_internal/execution/failure_handling/default.py": ("_worker_group_failures",),
    "ray/train/v2/api/config.py": ("_resources_per_worker_not_none",),
    "ray/train/v2/api/data_parallel_trainer.py": (
        "_create_default_callbacks", "_initialize_and_run_controller",
    ),
    "ray/_private/state.py": ("get_draining_nodes",),
    "ray/_private/runtime_env/packaging.py": ("_dir_travel", "_get_excludes"),
    "ray/autoscaler/_private/fake_multi_node/node_provider.py": (
        "_create_node_with_resources_and_labels",
    ),
    "deepspeed/comm/torch.py": ("build_shm_op",),
    "deepspeed/runtime/engine.py": ("_broadcast_model",),
    "deepspeed/runtime/zero/parameter_offload.py": (
        "ds_grads_remaining", "post_sub_module_forward_function",
    ),
    "deepspeed/runtime/zero/partition_parameters.py": (
        "_convert_to_deepspeed_param", "_convert_to_zero_parameters", "all_gather", "ds_numel",
        "ds_shape", "ds_status",
    ),
    "deepspeed/runtime/zero/stage_1_and_2.py": (
        "_hp_mapping", "_lazy_init_hp_params_optimizer_state", "_pending_offload_events",
        "_wait_for_offload_copies", "accumulated_grads_in_cpu", "averaged_gradients",
        "norm_for_param_grads", "scaled_global_norm", "single_partition_of_fp32_groups",
        "update_lp_params", "update_offload_overflow_tracker",
        "update_offload_overflow_tracker_for_param_grad",
    ),
    "deepspeed/runtime/zero/stage3.py": (
        "_get_norm_groups", "_partition_all_parameters", "_post_step",
        "fp16_partitioned_groups_flat",
        "fp32_partitioned_groups_flat", "get_param_id",
        "grad_partitions_flat_buffer", "grad_position",
    ),
    "deepspeed/utils/tensor_fragment.py": (
        "get_hp_fragment", "hp_fragment", "lp_fragment_address",
    ),
}  # fmt: skip


def modules_named(tree: ast.AST) -> list[str]:
    """Every module of these libraries that is imported, or named by a string."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{a.name}" for a in node.names if a.name.startswith("_")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"^(?:ray|deepspeed)(?:\.\w+)+$", node.value)
    return [name for name in found if name.split(".")[0] in LIBRARIES]


def chains(tree: ast.AST) -> list[str]:
    """ray.a.b of every expression that begins with one of these libraries."""
    found = []
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in LIBRARIES:
            found.append(".".join((node.id, *reversed(parts))))
    return found


def private_names(source: str) -> list[str]:
    tree = ast.parse(source)
    modules = [m for m in modules_named(tree) if not any(re.fullmatch(p, m) for p in PUBLIC)]
    return modules + [chain for chain in chains(tree) if re.search(r"\._(?!_)", chain)]


def members_named(source: str) -> set[str]:
    """Attributes that are read or written, methods that are defined."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_private_members_have_one_home_and_are_all_used_there():
    members = {name for names in MEMBERS.values() for name in names}
    named = {
        path.relative_to(PACKAGE).as_posix(): members & members_named(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }
    assert {place: names for place, names in named.items() if names and place not in HOMES} == {}
    assert set.union(*named.values()) == members, "and none is listed in vain"


@pytest.mark.parametrize("file", MEMBERS)
def test_the_libraries_still_have_these_members(file):
    """Where one is gone, so is a use of ours: the file that has it says what it was for."""
    library = file.split("/")[0]
    root = Path(importlib.util.find_spec(library).origin).parents[1]
    text = (root / file).read_text()
    assert [name for name in MEMBERS[file] if not re.search(rf"\b{name}\b", text)] == []


def test_private_parts_have_one_home():
    wrong = [
        f"{path.relative_to(PACKAGE)} names {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in HOMES
        for name in private_names(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import services",
        "from ray import _private",
        "import ray.train.v2._internal.constants",
        "ray._private.state.jobs()",
        "importlib.import_module('deepspeed.runtime.zero.utils')",
        "from deepspeed.runtime.engine import DeepSpeedEngine",
        "from ray.core.generated import gcs_service_pb2",
    ],
)
def test_a_private_name_is_seen(source):
    assert private_names(source)
