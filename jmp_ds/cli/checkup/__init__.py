"""What `jmp-ds doctor` looks at: each module looks at one thing and yields findings; none changes anything."""
