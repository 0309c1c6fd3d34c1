package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ruleTable is this process's copy of the rule maps' keys. It holds while the version in the settings is
// the one it was read at; another process's change makes the next user read it again.
type ruleTable struct {
	g        *Gate
	loaded   bool
	version  uint64
	byID     map[uint64]*ruleValue
	byDigest map[uint64]uint64 // of the key to the rule's ID
	factors  [keyWords]uint64
	masks    []maskUse
	free     []uint32  // slots, the longest free first
	stale    []ruleKey // keys to delete after the next change of masks
	dirty    bool      // rules were written since the last commit
	reshaped bool      // masks were added or lost all their rules
	nextMask uint16
	set      uint32
	flips    [maskSets]time.Time // when each set went out of force
}

type maskUse struct {
	mask
	rules int
}

// grace is how long a program that runs now may still look at a mask set that was replaced: generously
// more than a packet takes.
const grace = 20 * time.Millisecond

// rules returns the table, read again if need be. The caller holds the lock.
func (g *Gate) rules() (*ruleTable, error) {
	c, err := g.config()
	if err != nil {
		return nil, err
	}
	if g.table.loaded && g.table.version == c.RulesVersion {
		return &g.table, nil
	}
	t := &g.table
	*t = ruleTable{
		g: g, version: c.RulesVersion, set: c.MaskSet, nextMask: uint16(c.NextMask), //nolint:gosec // wraps
		byID: map[uint64]*ruleValue{}, byDigest: map[uint64]uint64{},
	}
	for i := range t.flips {
		t.flips[i] = time.Now()
	}
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("%s: read the rules: %w", g.iface, err)
	}
	return t, nil
}

func (t *ruleTable) load() error {
	var set maskSet
	if err := t.g.maps.GateMasks.Lookup(t.set, &set); err != nil {
		return err
	}
	if t.factors = set.Factors; t.factors[0] == 0 {
		for i := range t.factors {
			t.factors[i] = rand.Uint64() | 1 //nolint:gosec // of a generator that the system seeds
		}
	}
	for _, m := range set.Masks[:min(set.Count, maxMasks)] {
		t.masks = append(t.masks, maskUse{mask: m})
	}
	sums, values, err := drain[uint64, ruleValue](t.g.maps.GateRules)
	if err != nil {
		return err
	}
	used := make(map[uint32]bool, len(sums))
	for i, sum := range sums {
		v := &values[i]
		at := t.find(v.Key.Mask)
		if _, twice := t.byID[v.ID]; at < 0 || twice || used[v.Slot] {
			// What a process left that died between two writes: a key whose mask never came into force, or
			// a rule's old key.
			if err := t.g.maps.GateRules.Delete(sum); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
			continue
		}
		t.join(at, &v.Key)
		t.masks[at].rules++
		t.byDigest[sum] = v.ID
		t.byID[v.ID] = v
		used[v.Slot] = true
	}
	for s := range t.g.maps.GateHits.MaxEntries() {
		if !used[s] {
			t.free = append(t.free, s)
		}
	}
	t.loaded = true
	return nil
}

// join makes a mask's common part cover one more key. A wider common part comes into force with commit; the
// key waits in the map until then.
func (t *ruleTable) join(at int, k *ruleKey) {
	m := &t.masks[at]
	c := only(&m.mask, k)
	if m.rules > 0 || m.Common != (common{}) {
		c = c.and(m.Common)
	}
	if c != m.Common {
		m.Common, t.reshaped = c, true
	}
}

// digest is the program's digest in bpf/rules.h.
func (t *ruleTable) digest(k *ruleKey) (sum uint64) {
	rest := uint64(k.Mask) | uint64(binary.LittleEndian.Uint16(k.SrcPort[:]))<<16 | uint64(binary.LittleEndian.Uint16(k.DstPort[:]))<<32 |
		uint64(k.Protocol)<<48 | uint64(k.TCPFlags)<<56
	for i, w := range [keyWords]uint64{
		binary.BigEndian.Uint64(k.Src[:8]), binary.BigEndian.Uint64(k.Src[8:]),
		binary.BigEndian.Uint64(k.Dst[:8]), binary.BigEndian.Uint64(k.Dst[8:]), rest,
	} {
		sum += w * t.factors[i]
	}
	return sum
}

// find returns the index of a mask by its id, -1 without.
func (t *ruleTable) find(id uint16) int {
	return slices.IndexFunc(t.masks, func(m maskUse) bool { return m.ID == id })
}

// newMaskID gives ids out in turn, so that a program that still looks at an old set never meets an id
// that means something else now.
func (t *ruleTable) newMaskID() uint16 {
	for {
		id := t.nextMask
		t.nextMask++
		if t.find(id) < 0 {
			return id
		}
	}
}

// takeSlot returns a slot with counters, first drop and rate state at zero.
func (t *ruleTable) takeSlot() (uint32, error) {
	if len(t.free) == 0 {
		return 0, ErrRuleLimit
	}
	slot := t.free[0]
	if err := t.g.maps.GateHits.Update(slot, make([]hits, ebpf.MustPossibleCPU()), ebpf.UpdateAny); err != nil {
		return 0, fmt.Errorf("clear the rule's counters: %w", err)
	}
	if err := t.g.maps.GateState.Update(slot, &ruleState{}, ebpf.UpdateAny); err != nil {
		return 0, fmt.Errorf("clear the rule's state: %w", err)
	}
	t.free = t.free[1:]
	return slot, nil
}

// commit puts new masks into force, deletes replaced keys, takes unused masks out, and tells other
// processes that the rules have changed. It returns errs and its own errors joined; after an error of its
// own the table is read anew.
func (t *ruleTable) commit(errs []error) error {
	err := t.settle()
	if err != nil {
		t.loaded = false
		errs = append(errs, fmt.Errorf("%s: put the rules into force: %w", t.g.iface, err))
	}
	return errors.Join(errs...)
}

func (t *ruleTable) settle() error {
	if t.reshaped {
		if err := t.flip(); err != nil {
			return err
		}
	}
	if len(t.stale) > 0 {
		quiesce()
	}
	for i := range t.stale {
		if err := t.dropKey(&t.stale[i]); err != nil {
			return err
		}
	}
	t.stale = nil
	before := len(t.masks)
	t.masks = slices.DeleteFunc(t.masks, func(m maskUse) bool { return m.rules == 0 })
	if len(t.masks) != before {
		if err := t.flip(); err != nil {
			return err
		}
	}
	if !t.dirty {
		return nil
	}
	t.dirty = false
	if err := t.track(); err != nil {
		return err
	}
	return t.g.setConfig(func(c *config) {
		c.RulesVersion++
		c.NextMask = uint32(t.nextMask)
		t.version = c.RulesVersion
	})
}

// quiesce waits until no CPU is within a packet that it began before the call: such a packet may still
// look for keys by the masks that were replaced. membarrier(2)'s global command is an RCU grace period, in
// which XDP programs run; kernels with nohz_full refuse it, there a pause has to do.
func quiesce() {
	const membarrierGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(grace)
	}
}

// flip writes the masks into the set that has been out of force the longest and makes that the one.
func (t *ruleTable) flip() error {
	slices.SortFunc(t.masks, func(a, b maskUse) int { return less(&a.mask, &b.mask) })
	next := (t.set + 1) % maskSets
	if left := grace - time.Since(t.flips[next]); left > 0 {
		time.Sleep(left)
	}
	set := maskSet{Count: uint32(len(t.masks)), Factors: t.factors} //nolint:gosec // at most maxMasks
	for i := range t.masks {
		set.Masks[i] = t.masks[i].mask
	}
	if err := t.g.maps.GateMasks.Update(next, &set, ebpf.UpdateAny); err != nil {
		return err
	}
	err := t.g.setConfig(func(c *config) {
		c.MaskSet = next
		c.NextMask = uint32(t.nextMask)
	})
	if err == nil {
		t.flips[t.set] = time.Now()
		t.set, t.reshaped = next, false
	}
	return err
}

// drain reads all entries of a hash or LPM map: in batches where the kernel can, else one by one.
func drain[K, V any](m *ebpf.Map) ([]K, []V, error) {
	return drainBy[K, V](m, atOnce)
}

// atOnce is the step of who holds the lock all the time.
func atOnce(step func() error) error { return step() }

// drainBy is drain whose batches are read by step, which may let others in between two of them.
func drainBy[K, V any](m *ebpf.Map, step func(func() error) error) ([]K, []V, error) {
	const chunk = 4096
	var (
		keys    []K
		values  []V
		cursor  ebpf.MapBatchCursor
		someK   = make([]K, chunk)
		someV   = make([]V, chunk)
		lookups int
	)
	for {
		var n int
		err := step(func() (err error) { n, err = m.BatchLookup(&cursor, someK, someV, nil); return err })
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOSPC) {
			break
		}
		keys, values = append(keys, someK[:n]...), append(values, someV[:n]...)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return keys, values, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if lookups++; lookups > int(m.MaxEntries()) {
			return nil, nil, errors.New("the map changes faster than it can be read")
		}
	}
	keys, values = nil, nil
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		keys, values = append(keys, k), append(values, v)
	}
	return keys, values, it.Err()
}
