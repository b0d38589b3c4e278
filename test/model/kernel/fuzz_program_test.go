// SPDX-License-Identifier: Apache-2.0

//go:build program

package kernel

import (
	"errors"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestProgramsAgreeWithTheModel makes up what happens at a host and has the
// programs and the model do it: verdict, bytes, and at the end all flows agree.
// SEED=… begins with a sequence again, FUZZ_TIME=… says how long it goes on.
func TestProgramsAgreeWithTheModel(t *testing.T) {
	k := open(t)
	until, seed := 30*time.Second, uint64(time.Now().UnixNano())
	if s := os.Getenv("FUZZ_TIME"); s != "" {
		var err error
		if until, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the first sequence is SEED=%d", seed)
	sequences := 0
	for begin := time.Now(); sequences == 0 || time.Since(begin) < until; sequences++ {
		err := k.Play(Made(seed))
		var d *Difference
		if errors.As(err, &d) {
			t.Fatalf("SEED=%d, as short as it gets: %v", seed, k.Shrink(d))
		}
		if err != nil {
			t.Fatalf("SEED=%d: %+v", seed, err)
		}
		seed++
	}
	t.Logf("%d sequences; packets by what became of them: %v", sequences, k.Seen)
}
