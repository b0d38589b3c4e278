// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shaperHandle marks a queueing discipline as ours.
var shaperHandle = netlink.MakeHandle(0xca, 0)

const (
	// What leaves a shaper at once: a few segments that the device has still to
	// cut, or what comes in two ticks of a slow kernel clock.
	shaperBurst = 256 << 10
	// What waits in a shaper, at most: a twentieth of a second's worth, and never
	// less than four such segments. What finds no room is lost, which TCP takes
	// for what it is.
	shaperQueue = 256 << 10
)

// Shape limits what a device sends, which is what its instance receives, to rate
// bytes a second; 0 lifts the limit. A device that is gone has none.
func Shape(ifindex int, rate uint64) error {
	if err := shape(ifindex, rate); err != nil {
		return fmt.Errorf("limit device %d to %d B/s: %w", ifindex, rate, err)
	}
	return nil
}

func shape(ifindex int, rate uint64) error {
	if rate != 0 {
		return netlink.QdiscReplace(shaper(ifindex, rate))
	}
	if have, err := Shapers(); err != nil || have[ifindex] == 0 {
		return err
	}
	err := netlink.QdiscDel(shaper(ifindex, 1))
	if isGone(err) {
		return nil
	}
	return err
}

func shaper(ifindex int, rate uint64) *netlink.Tbf {
	burst := min(max(shaperBurst, rate/50), math.MaxUint32)
	queue := min(max(shaperQueue, rate/20), math.MaxUint32)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: shaperHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: uint32(queue), Buffer: netlink.Xmittime(rate, uint32(burst)),
	}
}

// Shapers are the limits that Shape has set, by device. The kernel lists those of
// all devices, whichever is asked for.
func Shapers() (map[int]uint64, error) {
	all, err := netlink.QdiscList(nil)
	if err != nil {
		return nil, fmt.Errorf("list queueing disciplines: %w", err)
	}
	rates := map[int]uint64{}
	for _, q := range all {
		if tbf, ok := q.(*netlink.Tbf); ok && tbf.Handle == shaperHandle {
			rates[tbf.LinkIndex] = tbf.Rate
		}
	}
	return rates, nil
}

func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, os.ErrNotExist)
}
