"""Triton's interpreter without work that it does again at every call."""

from __future__ import annotations


def patch_language_once_per_launch() -> None:
    """Let a kernel's launch replace what is in ``triton.language``, and not every function that the kernel calls again.

    That takes longer than what the functions do. A Triton that is built otherwise is left as it is.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("GridExecutor", "_LangPatchScope", "_patch_lang")):
        return
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[int] = set()

    def patch_once(function):
        modules = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if modules and modules <= replaced:
            return interpreter._LangPatchScope()  # of no changes
        scope = patch(function)
        replaced.update(modules)
        return scope

    def launch_anew(self, *args, **kwargs):
        replaced.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            replaced.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_anew
