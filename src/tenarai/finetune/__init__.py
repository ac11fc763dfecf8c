"""Fine-tuning: a model that exists, trained on with examples, whole or by an adapter."""
