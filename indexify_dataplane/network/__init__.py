"""Network policies of sandboxes: what a policy means in rules, and how they come into force."""
