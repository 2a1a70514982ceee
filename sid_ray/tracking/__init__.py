"""What a run tells MLflow: the journal, the sender, the store."""
