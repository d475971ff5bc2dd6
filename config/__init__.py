"""What a stack may say: `settings` is the model, `stack` reads Pulumi's config into it."""
