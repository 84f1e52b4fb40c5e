"""What a request leaves behind for later ones. Bounded, droppable, never awaited."""
