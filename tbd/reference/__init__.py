"""The built-in world: a base model, question sets, and a reference whose contamination is known, as it is planted."""
