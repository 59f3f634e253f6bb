"""Problems, budgets, prompts and the cursor over them."""
