"""Every source of prompts, as an option that may be any of them."""

from .clips import MovingPrompts
from .edits import EditPrompts
from .geneval_prompts import MixedPrompts, ObjectPrompts, SignPrompts
from .prompts import PromptFile, ShapesPrompts

Prompts = ShapesPrompts | MovingPrompts | EditPrompts | ObjectPrompts | SignPrompts | MixedPrompts | PromptFile
