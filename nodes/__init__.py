"""The nodes: the only code that knows ComfyUI. Each one is a schema and a few lines that call ``gendr_core``.

Role: above the core and unknown to it; ``extension`` is the way in, ``host`` the only file that imports ``comfy``.
"""
