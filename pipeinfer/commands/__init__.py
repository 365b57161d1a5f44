"""The commands of `pipeinfer`, one per file. What a command needs is imported when it runs, so that help is instant."""
