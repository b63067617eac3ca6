"""Every source of prompts, as an option that may be any of them."""

from .clips import MovingPrompts
from .geneval_prompts import MixedPrompts, ObjectPrompts, SignPrompts
from .prompts import PromptFile, ShapesPrompts

Prompts = ShapesPrompts | MovingPrompts | ObjectPrompts | SignPrompts | MixedPrompts | PromptFile
