"""Recipes from torchdistill's configurations (``limbeck import-torchdistill``).

What a configuration says of models, data, training, stages and losses becomes a recipe; every entry that nothing here
reads is named with its line, so that nothing is lost in silence. The losses become terms of ``compose``; a few that
need more than two tensors become the method of the same paper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import UserError

SILENT = frozenset(
    (
        *(
            "name",
            "_experiment",
            "_weights",
            "dst_ckpt",
            "log_freq",
            "num_workers",
            "pin_memory",
            "drop_last",
            "sampler",
        ),
        *("dataset_id", "memory_efficient", "progress", "val_data_loader", "val", "test", "forward_proc", "wrapper"),
        *("forward_hook", "adaptations", "download", "root", "train", "reduction", "criterion_wrapper", "io", "mode"),
        *("find_unused_parameters", "is_from_teacher", "dependencies", "kwargs", "splits", "init", "transform"),
    )
)
"""Entries that limbeck decides by itself, or that say what it does anyway."""

Terms = dict[str, dict[str, Any]]


class Entry(dict[str, Any]):
    """A map that knows the line of each key, and which keys were read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}
        self.read: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """A value, marked as read; the default where it is missing or empty."""
        self.read.add(key)
        value = self.get(key)
        return default if value is None else value


class _Loader(yaml.SafeLoader):
    """Reads maps as :class:`Entry`, joins strings, and turns tags that would run code into their arguments."""


def _map(loader: _Loader, node: yaml.MappingNode) -> Iterator[Entry]:
    entry = Entry()
    yield entry
    loader.flatten_mapping(node)
    for key, value in node.value:
        name = str(loader.construct_object(key, deep=True))
        entry[name] = loader.construct_object(value, deep=True)
        entry.lines[name] = key.start_mark.line + 1


def _join(loader: _Loader, node: yaml.SequenceNode) -> str:
    return "".join(str(part) for part in loader.construct_sequence(node, deep=True))


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_object(
            yaml.MappingNode("tag:yaml.org,2002:map", node.value, node.start_mark), deep=True
        )
    return None


_Loader.add_constructor("tag:yaml.org,2002:map", _map)
_Loader.add_constructor("!join", _join)
_Loader.add_multi_constructor("!", _tagged)


class _Dumper(yaml.SafeDumper):
    """Writes what occurs twice twice: a recipe is read by people."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass
class Imported:
    """A recipe as plain values, and what could not be carried over, a line each."""

    recipe: dict[str, Any]
    left: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The recipe as YAML; what was left is a comment at its head."""
        head = [f"# not carried over: {line}" for line in self.left]
        return "\n".join(
            [*head, yaml.dump(self.recipe, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)]
        )


def import_torchdistill(path: str | Path) -> Imported:
    """The recipe of a torchdistill configuration (image classification, one or several stages).

    Raises:
        UserError: no such file, no YAML, or not a configuration that trains a student.
    """
    path = Path(path)
    try:
        tree = _Loader(path.read_text(encoding="utf8")).get_single_data()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, Entry) or not isinstance(tree.get("train"), Entry) or "models" not in tree:
        raise UserError(f"{path} is no torchdistill configuration: it has no 'models' and 'train'")
    return _Import(path, tree).made()


class _Import:
    def __init__(self, path: Path, tree: Entry) -> None:
        self.path, self.tree, self.left = path, tree, list[str]()

    def made(self) -> Imported:
        models, train = self.tree.take("models"), self.tree.take("train")
        recipe: dict[str, Any] = {"title": self.path.stem.replace("-", " ").replace("_", " ")}
        stages = [train.take(key) for key in sorted(k for k in train if re.fullmatch(r"stage\d+", k))] or [train]
        recipe["data"] = self._data(stages[0])
        if models.get("teacher_model"):
            recipe["teacher"] = self._model(models.take("teacher_model"))
        student = models.take("student_model") or models.take("model")
        if not isinstance(student, Entry):
            raise UserError(f"{self.path}: models has no student_model")
        recipe["student"] = self._model(student)
        made: list[dict[str, Any]] = []
        size: dict[str, Any] = {}
        for stage in stages:
            found = self._stage(stage)
            # A stage that names no loader goes on with that of the one before.
            size = {k: v for k, v in {**size, **found["train"]}.items() if k == "batch_size"}
            found["train"] = {**size, **found["train"]}
            if found["method"] is not None:
                made.append(found)
        if not made:
            raise UserError(f"{self.path}: no stage has a loss that can be carried over")
        last = made[-1]
        recipe["method"], recipe["train"] = last["method"], last["train"]
        if len(made) > 1:
            names = [f"stage{i + 1}" for i in range(len(made))]
            recipe["phases"] = [{"name": name, **stage} for name, stage in zip(names, made, strict=True)]
        if frozen := stages[-1].take("student", {}).get("frozen_modules"):
            recipe["student"]["freeze"] = [f"{name}.*" for name in frozen]
        if stages[0].take("train_data_loader", Entry()).get("cache_output"):
            recipe["cache"] = {"mode": "full"}
        self._name_unread(self.tree, "")
        return Imported(recipe, self.left)

    def _say(self, entry: Entry, key: str, why: str) -> None:
        self.left.append(f"{self.path.name}:{entry.lines.get(key, 0)}: {key}: {why}")

    def _name_unread(self, entry: Any, where: str) -> None:
        for key, value in entry.items() if isinstance(entry, Entry) else ():
            if key in SILENT or key.startswith("_") or value in (None, [], {}, ""):
                if isinstance(value, Entry) and key in ("kwargs", "train", "init"):
                    self._name_unread(value, f"{where}{key}.")
            elif key not in entry.read:
                self.left.append(f"{self.path.name}:{entry.lines[key]}: {where}{key} has no counterpart here")
                entry.read.add(key)
            else:
                self._name_unread(value, f"{where}{key}.")

    # -- models and data -----------------------------------------------------------------------------------------------

    def _model(self, entry: Entry) -> dict[str, Any]:
        key, kwargs = str(entry.take("key")), entry.take("kwargs", Entry())
        classes = kwargs.take("num_classes")
        made: dict[str, Any]
        if found := re.fullmatch(r"resnet(20|32|44|56|110)", key):
            made = {"name": "resnet_cifar", "depth": int(found[1])}
        elif found := re.fullmatch(r"wide_resnet(\d+)_(\d+)", key):
            made = {"name": "wrn", "depth": int(found[1]), "width": int(found[2])}
        elif key == "wide_resnet":
            made = {"name": "wrn", "depth": kwargs.take("depth", 28), "width": kwargs.take("k", 10)}
        else:
            made = {"name": f"torchvision.models:{key}"} | ({"num_classes": classes} if classes else {})
            self._say(entry, "key", f"{key} is taken from torchvision, which must be installed")
        for name in ("pretrained", "weights"):
            if kwargs.take(name):
                self._say(kwargs, name, "weights are not downloaded: give the model a path, or train it here")
        if checkpoint := entry.take("src_ckpt"):
            made["path"] = str(checkpoint)
            self._say(entry, "src_ckpt", "read as a state_dict: torchdistill's own layout must be stripped to 'model'")
        return made

    def _data(self, stage: Entry) -> dict[str, Any]:
        wanted = stage.take("train_data_loader", Entry()).get("dataset_id")
        sets = self.tree.take("datasets", Entry())
        sets.read |= set(sets)
        chosen = None
        for name, entry in sets.items():
            if name == wanted:
                chosen = entry, _kwargs(entry)
            for split in (entry.take("splits") or Entry()).values():
                if isinstance(split, Entry) and split.take("dataset_id") == wanted:
                    chosen = entry, _kwargs(split)
            entry.read.add("key")
        if chosen is not None:
            return self._data_set(*chosen)
        raise UserError(f"{self.path}: no data set has the dataset_id '{wanted}' that training asks for")

    def _data_set(self, entry: Entry, kwargs: Entry) -> dict[str, Any]:
        key = str(entry.take("key")).rpartition(".")[2]
        entry.read |= {"root", "_root"}
        if key in ("CIFAR10", "CIFAR100"):
            made: dict[str, Any] = {"name": key.lower()}
            self._say(entry, "key", f"{key} is read from {key.lower()} files under LIMBECK_DATA, not downloaded")
        else:
            made = {"name": "folder", "path": str(Path(str(kwargs.take("root", "."))).parent)}
            if key != "ImageFolder":
                self._say(entry, "key", f"{key} is taken for a folder with a folder of pictures for each class")
        given = kwargs.take("transform_configs") or _kwargs(kwargs.take("transform", Entry())).take("transforms", [])
        augment = [self._transform(t) for t in given if isinstance(t, Entry)]
        return made | ({"augment": [t for t in augment if t]} if any(augment) else {})

    def _transform(self, entry: Entry) -> Any:
        key, kwargs = str(entry.take("key")).rpartition(".")[2], _kwargs(entry)
        kwargs.read |= set(kwargs)
        if key == "RandomCrop" and kwargs.get("padding"):
            return {"name": "crop", "padding": kwargs["padding"]}
        if key == "RandomHorizontalFlip":
            return {"name": "flip", "p": kwargs.get("p", 0.5)}
        if key not in ("ToTensor", "Normalize"):
            self._say(entry, "key", f"there is no transform {key} here")
        return None

    # -- training ------------------------------------------------------------------------------------------------------

    def _stage(self, stage: Entry) -> dict[str, Any]:
        train: dict[str, Any] = {"epochs": stage.take("num_epochs", 1)}
        loader = stage.take("train_data_loader", Entry())
        if size := loader.take("kwargs", Entry()).take("batch_size"):
            train["batch_size"] = size
        loader.take("cache_output")
        if optimizer := self._optimizer(stage.take("optimizer", Entry())):
            train["optimizer"] = optimizer
        if schedule := self._schedule(stage.take("scheduler", Entry()), train["epochs"]):
            train["schedule"] = schedule
        for name in ("grad_accum_step", "max_grad_norm"):
            if value := stage.take(name):
                train[{"grad_accum_step": "accumulate", "max_grad_norm": "clip"}[name]] = value
        added = [self._side(stage.take(side, Entry())) for side in ("teacher", "student")]
        named = next((WRAPPERS[key] for key in added if key in WRAPPERS), None)
        return {"method": self._method(stage.take("criterion", Entry()), named), "train": train}

    def _side(self, entry: Entry) -> str:
        """What a side's auxiliary wrapper is called, if it has one."""
        entry.read |= {"requires_grad", "frozen_modules"}
        if entry.take("sequential"):
            self._say(entry, "sequential", "the model runs whole; rebuild it from its modules in Python if it must not")
        wrapper = entry.take("auxiliary_model_wrapper", Entry())
        key = str(wrapper.take("key", ""))
        if key and key not in ("EmptyModule", *WRAPPERS):
            says = f"what {key} adds is part of a method or a term's projector here"
            self._say(entry, "auxiliary_model_wrapper", says)
        wrapper.clear()
        return key

    def _optimizer(self, entry: Entry) -> dict[str, Any]:
        key, kwargs = entry.take("key"), entry.take("kwargs", Entry())
        if key is None:
            return {}
        if str(key).lower() not in ("sgd", "adam", "adamw"):
            kwargs.read |= set(kwargs)
            return {"name": f"torch.optim:{key}", **kwargs}
        known = ("lr", "momentum", "weight_decay", "betas", "eps", "nesterov")
        return {"name": str(key).lower(), **{k: kwargs.take(k) for k in known if k in kwargs}}

    def _schedule(self, entry: Entry, epochs: int) -> dict[str, Any]:
        key, kwargs = entry.take("key"), entry.take("kwargs", Entry())
        if key == "MultiStepLR":
            shares = [round(m / epochs, 6) for m in kwargs.take("milestones", []) if m < epochs]
            return {"name": "step", "at": shares, "factor": kwargs.take("gamma", 0.1)}
        if key == "StepLR":
            every = kwargs.take("step_size", epochs)
            shares = [round(m / epochs, 6) for m in range(every, epochs, every)]
            return {"name": "step", "at": shares, "factor": kwargs.take("gamma", 0.1)}
        if key == "CosineAnnealingLR":
            kwargs.read |= {"T_max", "eta_min"}
            return {"name": "cosine"}
        if key is not None:
            self._say(entry, "key", f"there is no schedule {key} here; the rate stays constant")
            kwargs.read |= set(kwargs)
        return {"name": "constant"}

    # -- losses --------------------------------------------------------------------------------------------------------

    def _method(self, entry: Entry, named: str | None) -> dict[str, Any] | None:
        """The method of a stage; None where nothing of its losses is left."""
        terms: Terms = {}
        kwargs = entry.take("kwargs", Entry())
        entry.take("key")
        for name, sub in kwargs.take("sub_terms", Entry()).items():
            kwargs["sub_terms"].read.add(name)
            criterion, weight = sub.take("criterion"), float(sub.take("weight", sub.take("factor", 1.0)))
            key, options = str(criterion.take("key")), criterion.take("kwargs", Entry())
            wrapper = sub.take("criterion_wrapper", Entry()).take("kwargs", Entry())
            if key in METHODS or (named is not None and key != "CrossEntropyLoss"):
                method, argument = (named, None) if named is not None else METHODS[key]
                self._say(criterion, "key", f"{key} became the method '{method}', which brings its own modules")
                self._unwind(kwargs["sub_terms"])
                return {"name": str(method)} | ({argument: weight} if argument else {})
            if _of_teacher(wrapper):
                self._say(criterion, "key", f"the term '{name}' trains the teacher's own modules; methods here do that")
                options.read |= set(options)
                wrapper.read |= set(wrapper)
            elif key in PLAIN:
                terms |= PLAIN[key](name, weight, options, wrapper)
            elif key in LOSSES:
                terms |= LOSSES[key](name, weight, options)
            else:
                self._say(criterion, "key", f"there is no loss {key} here; the term '{name}' is left out")
                options.read |= set(options)
        if list(terms) and all(t["name"] == "cross_entropy" for t in terms.values()) and len(terms) == 1:
            return {"name": "supervised"}
        return {"name": "compose", "terms": terms} if terms else None

    def _unwind(self, entry: Any) -> None:
        """Mark a whole tree as read."""
        for value in entry.values() if isinstance(entry, Entry) else ():
            self._unwind(value)
        if isinstance(entry, Entry):
            entry.read |= set(entry)


def _of_teacher(wrapper: Entry) -> bool:
    """Whether both sides of a plain loss are the teacher's."""
    sides = [wrapper.get(side) for side in ("input", "target")]
    return all(isinstance(side, Entry) and bool(side.get("is_from_teacher")) for side in sides)


# ---------------------------------------------------------------------------------------------------------------------
# torchdistill's losses by name


def _kwargs(entry: Entry) -> Entry:
    """The arguments of an entry, also where they stand under ``init`` or are empty."""
    found: Entry = entry.take("kwargs") or (entry.take("init") or Entry()).take("kwargs") or Entry()
    return found


def _path(options: Entry, key: str) -> str | None:
    """A module path; the whole model is no path here."""
    options.take(key.replace("_path", "_io"))
    found = options.take(key)
    return None if found in (None, ".") else str(found)


def _sides(
    options: Entry, student: str = "student_module_path", teacher: str = "teacher_module_path"
) -> dict[str, Any]:
    own, other = _path(options, student), _path(options, teacher)
    return {k: v for k, v in (("student", own), ("teacher", other)) if v}


def _cross_entropy(name: str, weight: float, options: Entry, wrapper: Entry) -> Terms:
    wrapper.read |= set(wrapper)
    smoothing = options.take("label_smoothing")
    return {name: {"name": "cross_entropy", "weight": weight} | ({"label_smoothing": smoothing} if smoothing else {})}


def _mse(name: str, weight: float, options: Entry, wrapper: Entry) -> Terms:
    wrapper.read |= set(wrapper)
    sides: dict[str, Any] = {}
    for side in ("input", "target"):
        spec = wrapper.get(side) or Entry()
        spec.read |= set(spec)
        path = spec.get("module_path")
        if path not in (None, "."):
            sides["teacher" if spec.get("is_from_teacher") else "student"] = path
    return {name: {"name": "mse", "weight": weight, **sides}}


def _kd(loss: str) -> Callable[[str, float, Entry], Terms]:
    def made(name: str, weight: float, options: Entry) -> Terms:
        alpha, temperature = options.take("alpha"), float(options.take("temperature", 1.0))
        beta = options.take("beta", None if alpha is None else 1 - alpha)
        options.take("eps")
        soft = {"name": loss, "temperature": temperature, **_sides(options)}
        if not alpha:
            # Without labels torchdistill does not multiply by the temperature squared.
            return {name: {**soft, "weight": weight / temperature**2}}
        return {
            f"{name}_hard": {"name": "cross_entropy", "weight": weight * alpha},
            f"{name}_soft": {**soft, "weight": weight * beta},
        }

    return made


def _pairs(loss: str, key: str, **argument: str) -> Callable[[str, float, Entry], Terms]:
    def made(name: str, weight: float, options: Entry) -> Terms:
        extra = {ours: options.take(theirs) for ours, theirs in argument.items() if theirs in options}
        terms: Terms = {}
        pairs = options.take(key, Entry())
        for number, (pair, spec) in enumerate(pairs.items()):
            pairs.read.add(pair)
            own, other = (spec.take(side, Entry()).take("path") for side in ("student", "teacher"))
            own_name = name if len(pairs) == 1 else f"{name}_{number + 1}"
            factor = float(spec.take("weight", 1))
            terms[own_name] = {"name": loss, "weight": weight * factor, "student": own, "teacher": other, **extra}
        return terms

    return made


def _single(loss: str, student: str, teacher: str, **argument: str) -> Callable[[str, float, Entry], Terms]:
    def made(name: str, weight: float, options: Entry) -> Terms:
        extra = {ours: options.take(theirs) for ours, theirs in argument.items() if theirs in options}
        options.take("eps")
        return {name: {"name": loss, "weight": weight, **_sides(options, student, teacher), **extra}}

    return made


def _rkd(name: str, weight: float, options: Entry) -> Terms:
    sides = _sides(options, "student_output_path", "teacher_output_path")
    distance, angle = float(options.take("dist_factor", 1.0)), float(options.take("angle_factor", 2.0))
    return {
        f"{name}_distance": {"name": "rkd_distance", "weight": weight * distance, **sides},
        f"{name}_angle": {"name": "rkd_angle", "weight": weight * angle, **sides},
    }


def _dist(name: str, weight: float, options: Entry) -> Terms:
    sides, temperature = _sides(options), float(options.take("tau", 1.0))
    beta, gamma = float(options.take("beta", 1.0)), float(options.take("gamma", 1.0))
    options.take("eps")
    shared = {"temperature": temperature, **sides}
    return {
        f"{name}_inter": {"name": "dist_inter", "weight": weight * beta, **shared},
        f"{name}_intra": {"name": "dist_intra", "weight": weight * gamma, **shared},
    }


def _cckd(name: str, weight: float, options: Entry) -> Terms:
    kernel = options.take("kernel_config", Entry())
    kernel.read |= set(kernel)
    extra = {k: v for k, v in (("gamma", kernel.get("gamma")), ("order", kernel.get("max_p"))) if v is not None}
    sides = _sides(options, "student_linear_path", "teacher_linear_path")
    return {name: {"name": "congruence", "weight": weight, **sides, **extra}}


PLAIN: Mapping[str, Callable[[str, float, Entry, Entry], Terms]] = {
    "CrossEntropyLoss": _cross_entropy,
    "MSELoss": _mse,
}
LOSSES: Mapping[str, Callable[[str, float, Entry], Terms]] = {
    "KDLoss": _kd("soft_kl"),
    "LogitStdKDLoss": _kd("standardized_kl"),
    "ATLoss": _pairs("attention", "at_pairs"),
    "AltActTransferLoss": _pairs("activation_boundary", "feature_pairs", margin="margin"),
    "PKTLoss": _single("pkt", "student_module_path", "teacher_module_path"),
    "SPKDLoss": _single("similarity", "student_output_path", "teacher_output_path"),
    "HierarchicalContextLoss": _single("hcl", "student_module_path", "teacher_module_path", levels="output_sizes"),
    "CCKDLoss": _cckd,
    "RKDLoss": _rkd,
    "DISTLoss": _dist,
}
"""What becomes one or more terms of ``compose``."""

WRAPPERS: Mapping[str, str] = {"Student4KnowledgeReview": "reviewkd"}
"""Auxiliary modules that stand for a whole method."""

METHODS: Mapping[str, tuple[str, str]] = {
    "FTLoss": ("ft", "beta"),
    "CRDLoss": ("crd", "beta"),
    "VIDLoss": ("vid", "beta"),
    "FSPLoss": ("fsp", "beta"),
}
"""What needs banks, translators or several layers at once: the method, and the argument that takes the weight."""
