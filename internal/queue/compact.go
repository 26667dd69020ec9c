package queue

import "context"

func (j *Journal) compact(ctx context.Context) { j.compactNow(nil) }

func (j *Journal) compactNow(commit func()) {}
