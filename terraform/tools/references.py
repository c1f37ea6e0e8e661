"""What `terraform validate` would say of references, without a provider.

Every name that an expression uses is declared, every argument of a module call is a variable of
that module, every variable that needs a value gets one, every declaration is used, and nothing
depends on itself.
"""

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from terraform.tools.provider_names import readable
from terraform.tools.tree import Block, Module, Reference, plain, references_in

_CALL = {"source", "count", "for_each", "depends_on", "providers", "version"}
_OWN = {"resource", "data", "ephemeral"}


def problems(modules: list[Module]) -> Iterator[str]:
    """One line for each reference that leads nowhere, and each unused declaration."""
    by_folder = {module.folder: module for module in modules}
    for module in modules:
        yield from (f"{module.folder.name}: {problem}" for problem in _of(module, by_folder))
    yield from cycles(by_folder)


def called(module: Module, call: Block) -> Path:
    """The folder that a module call names."""
    return (module.folder / str(plain(call.body.get("source", "")))).resolve()


def _of(module: Module, by_folder: dict[Path, Module]) -> Iterator[str]:
    used: set[str] = set()
    for block in module.blocks:
        for reference in block.references():
            # A variable's validation may name the variable itself; that is no use of it.
            if block.kind != "variable":
                used.add(".".join(reference.parts[:2]))
            problem = _problem(reference, block, module, by_folder)
            if problem:
                yield f"{block.file.name}: {block.name}: {reference} {problem}"
        if block.kind == "module":
            yield from _call(block, module, by_folder)
    yield from (
        f"{name} is used by nothing"
        for name in [
            *(f"var.{name}" for name in module.of("variable")),
            *(f"local.{name}" for name in module.locals),
        ]
        if name not in used
    )


def _problem(
    reference: Reference, block: Block, module: Module, by_folder: dict[Path, Module]
) -> str | None:
    kind, *names = reference.parts
    match kind:
        case "var":
            return _variable(names, module)
        case "local":
            return None if names[0] in module.locals else "is not declared"
        case "module":
            return _output(names, module, by_folder)
        case "each":
            return None if "for_each" in block.body else "is used without for_each"
        case "data" | "ephemeral":
            return _attribute(kind, names, module)
        case _:
            return _attribute("resource", [kind, *names], module)


def _variable(names: list[str], module: Module) -> str | None:
    declared = module.of("variable").get(names[0])
    if declared is None:
        return "is not declared"
    fields = object_fields(str(declared.body.get("type", "")))
    if fields and len(names) > 1 and names[1] not in fields:
        return f"is not among its fields {', '.join(fields)}"
    return None


def _output(names: list[str], module: Module, by_folder: dict[Path, Module]) -> str | None:
    call = module.of("module").get(names[0])
    if call is None:
        return "is not called"
    target = by_folder.get(called(module, call))
    if target is None or len(names) == 1 or names[1] in target.of("output"):
        return None
    return "is not an output"


def _attribute(kind: str, names: list[str], module: Module) -> str | None:
    label = ".".join(names[:2])
    if len(names) < 2 or label not in module.of(kind):
        return "is not declared"
    known = readable(kind, names[0])
    if len(names) > 2 and names[2] not in known:
        return f"is nothing that {names[0]} has"
    return None


def _call(call: Block, module: Module, by_folder: dict[Path, Module]) -> Iterator[str]:
    where = f"{call.file.name}: module.{call.labels[0]}"
    target = by_folder.get(called(module, call))
    if target is None:
        yield f"{where}: there is no module at {plain(call.body.get('source'))}"
        return
    declared = target.of("variable")
    given = {name: value for name, value in call.body.items() if not name.startswith("__")}
    for name in given:
        if name not in _CALL and name not in declared:
            yield f"{where}: {name} is no variable of {target.folder.name}"
    for name, variable in declared.items():
        if "default" not in variable.body and name not in given:
            yield f"{where}: {name} is required and not given"
    for name, value in given.items():
        if name in declared:
            yield from (
                f"{where}: {name} lacks {field}"
                for field in _missing(value, declared[name], module, by_folder)
            )


def _missing(
    value: object, variable: Block, module: Module, by_folder: dict[Path, Module]
) -> Iterator[str]:
    """Fields that an object-typed variable demands and a whole module given to it lacks."""
    whole = re.fullmatch(r"\$\{module\.(\w+)\}", str(value))
    call = module.of("module").get(whole[1]) if whole else None
    source = by_folder.get(called(module, call)) if call else None
    if source is not None:
        fields = object_fields(str(variable.body.get("type", "")))
        outputs = source.of("output")
        yield from (name for name, needed in fields.items() if needed and name not in outputs)


def object_fields(type_: str) -> dict[str, bool]:
    """The fields of an `object({...})` type, and whether each is required; empty for any other."""
    inner = re.fullmatch(r"\$\{object\(\{(.*)\}\)\}", type_, re.DOTALL)
    fields: dict[str, bool] = {}
    depth, start = 0, 0
    text = f"{inner[1]}," if inner else ""
    for index, char in enumerate(text):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(char, 0)
        if depth == 0 and char in ",\n":
            name, separator, rest = text[start:index].partition("=")
            if separator:
                fields[name.strip()] = not rest.strip().startswith("optional(")
            start = index + 1
    return fields


def cycles(by_folder: dict[Path, Module]) -> Iterator[str]:
    """A circle of dependencies, if a root module has one, with everything on it."""
    targets = {
        called(module, call)
        for module in by_folder.values()
        for call in module.of("module").values()
    }
    for folder, module in by_folder.items():
        if folder not in targets:
            graph: dict[str, set[str]] = {}
            _graph(module, "", by_folder, graph)
            try:
                TopologicalSorter(graph).prepare()
            except CycleError as error:
                yield f"{folder.name}: a circle: {' <- '.join(error.args[1])}"


def _graph(
    module: Module, path: str, by_folder: dict[Path, Module], graph: dict[str, set[str]]
) -> None:
    """Terraform's own nodes: each local, variable, output and resource of each called module."""

    def nodes(value: object) -> set[str]:
        return {
            node
            for found in references_in(value)
            for node in _nodes(found, path, module, by_folder)
        }

    for name, value in module.locals.items():
        graph.setdefault(f"{path}local.{name}", set()).update(nodes(value))
    for block in module.blocks:
        if block.kind in _OWN:
            prefix = "" if block.kind == "resource" else f"{block.kind}."
            graph.setdefault(f"{path}{prefix}{'.'.join(block.labels)}", set()).update(
                nodes(block.body)
            )
        elif block.kind == "output":
            graph.setdefault(f"{path}output.{block.labels[0]}", set()).update(nodes(block.body))
        elif block.kind == "module":
            inner = f"{path}{block.labels[0]}/"
            target = by_folder.get(called(module, block))
            repeated = nodes([block.body.get("count"), block.body.get("for_each")])
            for name in target.of("variable") if target else ():
                graph.setdefault(f"{inner}var.{name}", set()).update(
                    nodes(block.body.get(name)) | repeated
                )
            if target:
                _graph(target, inner, by_folder, graph)


def _nodes(
    reference: Reference, path: str, module: Module, by_folder: dict[Path, Module]
) -> Iterator[str]:
    kind, *names = reference.parts
    if kind in ("var", "local"):
        yield f"{path}{kind}.{names[0]}"
    elif kind == "module":
        call = module.of("module").get(names[0])
        target = by_folder.get(called(module, call)) if call else None
        outputs = target.of("output") if target else {}
        wanted = [names[1]] if len(names) > 1 else list(outputs)
        yield from (f"{path}{names[0]}/output.{name}" for name in wanted)
    elif kind in ("data", "ephemeral"):
        yield f"{path}{kind}.{'.'.join(names[:2])}"
    elif kind != "each":
        yield f"{path}{kind}.{names[0] if names else ''}"
