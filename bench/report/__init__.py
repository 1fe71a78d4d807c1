"""The page docs/reference/performance.md and its pictures, made from bench/results and from the prose in page.md."""
