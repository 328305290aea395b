"""Speed, memory and accuracy of every op beside what one would run without it."""
