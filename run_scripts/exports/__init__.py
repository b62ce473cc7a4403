"""The formats of run_scripts/export.py, a module for each, and what their checks of the embeddings share."""
MAX_DISTANCE = 1e-4   # largest cosine distance between an exported and an original embedding
TEST_SENTENCES = (
    'a woman in a red coat',
    'The man wears black trousers, white sneakers and a grey hooded jacket. He carries a backpack.',
    'a child',
    'an elderly person with short white hair looks into a shop window, an umbrella in the left hand')
