// Package queue is durable store-and-forward: append, read, acknowledge, prune.
package queue
