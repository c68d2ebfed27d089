"""What may not pass: personal data, secrets, injected orders. Precision and recall on corpora are measured elsewhere."""
