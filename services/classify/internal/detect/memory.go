package detect

// tries is how many entries an eviction looks at; a map's order is random enough for it.
const tries = 8

// aged is something that was last of use at a time.
type aged interface{ last() int64 }

// remember returns m's entry of k, made if need be; at limit entries the one idle longest among a few makes room.
func remember[K comparable, V aged](m map[K]V, k K, limit int, fresh func() V) V {
	if v, ok := m[k]; ok {
		return v
	}
	if len(m) >= limit {
		var oldest K
		at, n := int64(0), 0
		for key, v := range m {
			if l := v.last(); n == 0 || l < at {
				oldest, at = key, l
			}
			if n++; n == tries {
				break
			}
		}
		delete(m, oldest)
	}
	v := fresh()
	m[k] = v
	return v
}
