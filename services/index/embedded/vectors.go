package embedded

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"slices"
	"sync"
	"unsafe"
)

// vectors is the dense leg: one code of a bit a dimension in memory (is the value above
// the mean?), and the vectors themselves in a scratch file, so that the exact cosines of
// some hundred candidates cost no memory and less than a millisecond. Both are derived
// from SQLite at every start, the file is nobody's to read, and nothing waits for it to
// reach the disk.
//
// Codes are taken around the mean because models such as e5 put all texts into one corner
// of the space, where the bare signs are nearly all the same.
type vectors struct {
	dir  string
	dims int // 0: no space yet
	file *os.File

	words int // of a code
	codes []uint64
	has   bitset
	slots int
	count int

	mean     []float32
	centered int // count when the mean was taken
}

func newVectors(dir string) *vectors { return &vectors{dir: dir} }

// reset forgets all vectors and takes those of another space.
func (v *vectors) reset(dims int) error {
	if err := v.close(); err != nil {
		return err
	}
	*v = vectors{dir: v.dir, dims: dims, words: (dims + 63) / 64, slots: v.slots}
	v.mean = make([]float32, dims)
	v.has.grow(v.slots)
	v.codes = make([]uint64, v.slots*v.words)
	if dims == 0 {
		return nil
	}
	f, err := os.CreateTemp(v.dir, scratchPattern)
	if err != nil {
		return fmt.Errorf("index: scratch file for vectors: %w", err)
	}
	v.file = f
	// Where the system allows it, the name goes at once and the space with the process.
	_ = os.Remove(f.Name())
	return nil
}

const scratchPattern = "vectors-*.scratch"

func (v *vectors) close() error {
	if v.file == nil {
		return nil
	}
	err := v.file.Close()
	_ = os.Remove(v.file.Name())
	v.file = nil
	return err
}

func (v *vectors) grow(slots int) {
	v.slots = slots
	v.has.grow(slots)
	for len(v.codes) < slots*v.words {
		v.codes = append(v.codes, 0)
	}
}

// set gives a slot its vector, of unit length.
func (v *vectors) set(slot uint32, vector []float32) error {
	if _, err := v.file.WriteAt(raw(vector), int64(slot)*int64(v.dims)*4); err != nil {
		v.drop(slot)
		return fmt.Errorf("index: scratch file for vectors: %w", err)
	}
	if !v.has.has(slot) {
		v.has.set(slot)
		v.count++
	}
	v.code(v.codes[int(slot)*v.words:][:v.words], vector)
	if v.count >= 256 && v.count >= 2*v.centered {
		return v.center()
	}
	return nil
}

func (v *vectors) drop(slot uint32) {
	if v.has.has(slot) {
		v.has.clear(slot)
		v.count--
	}
}

func (v *vectors) code(code []uint64, vector []float32) {
	clear(code)
	for i, x := range vector {
		if x > v.mean[i] {
			code[i/64] |= 1 << (i % 64)
		}
	}
}

// center takes the mean anew and codes everything again. It runs each time the number of
// vectors has doubled, so that its cost stays in proportion.
func (v *vectors) center() error {
	sum := make([]float64, v.dims)
	each := func(f func(slot int, vector []float32)) error {
		vector := make([]float32, v.dims)
		for s := range v.slots {
			if !v.has.has(uint32(s)) {
				continue
			}
			if err := v.read(uint32(s), vector); err != nil {
				return err
			}
			f(s, vector)
		}
		return nil
	}
	if err := each(func(_ int, vector []float32) {
		for i, x := range vector {
			sum[i] += float64(x)
		}
	}); err != nil {
		return err
	}
	for i := range sum {
		v.mean[i] = float32(sum[i] / float64(v.count))
	}
	v.centered = v.count
	return each(func(s int, vector []float32) { v.code(v.codes[s*v.words:][:v.words], vector) })
}

func (v *vectors) read(slot uint32, vector []float32) error {
	if _, err := v.file.ReadAt(raw(vector), int64(slot)*int64(v.dims)*4); err != nil {
		return fmt.Errorf("index: scratch file for vectors: %w", err)
	}
	return nil
}

// raw is the memory of a vector: no other program reads the scratch file, so that its
// byte order is the machine's.
func raw(vector []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(vector))), 4*len(vector))
}

// cosines of the query with the vectors of slots; the second is false where a slot has no vector.
func (v *vectors) cosines(query []float32, slots []uint32) ([]float64, []bool, error) {
	cos, ok := make([]float64, len(slots)), make([]bool, len(slots))
	vector := make([]float32, v.dims)
	for i, s := range slots {
		if !v.has.has(s) {
			continue
		}
		if err := v.read(s, vector); err != nil {
			return nil, nil, err
		}
		cos[i], ok[i] = float64(dot(query, vector)), true
	}
	return cos, ok, nil
}

// near returns the n chosen slots with the codes nearest to the query's (all when
// there are fewer), in order of slot, so that reading their vectors goes forward.
func (v *vectors) near(query []float32, chosen bitset, n int) []uint32 {
	code := make([]uint64, v.words)
	v.code(code, query)
	scan := scans.Get().(*scanned)
	defer scans.Put(scan)
	slots, distances := scan.slots[:0], scan.distances[:0]
	histogram := make([]int, v.dims+1)
	for i, w := range v.has {
		w &= chosen[i]
		for w != 0 {
			s := i*64 + bits.TrailingZeros64(w)
			w &= w - 1
			d := distance(code, v.codes[s*v.words:][:len(code)])
			slots = append(slots, uint32(s))
			distances = append(distances, uint16(d))
			histogram[d]++
		}
	}
	scan.slots, scan.distances = slots, distances
	limit, room := 0, n // all nearer than limit, and room of those at limit
	for limit < v.dims && histogram[limit] < room {
		room -= histogram[limit]
		limit++
	}
	found := make([]uint32, 0, min(n, len(slots)))
	for i, s := range slots {
		switch d := int(distances[i]); {
		case d < limit:
			found = append(found, s)
		case d == limit && room > 0:
			found = append(found, s)
			room--
		}
	}
	return found
}

// scanned holds what one scan found, to be used again.
type scanned struct {
	slots     []uint32
	distances []uint16
}

var scans = sync.Pool{New: func() any { return new(scanned) }}

// distance counts the bits in which two codes differ. 384 dimensions, the most common
// length, are written out: that is twice as fast.
func distance(a, b []uint64) (d int) {
	if len(a) == 6 && len(b) == 6 {
		x, y := (*[6]uint64)(a), (*[6]uint64)(b)
		return bits.OnesCount64(x[0]^y[0]) + bits.OnesCount64(x[1]^y[1]) + bits.OnesCount64(x[2]^y[2]) +
			bits.OnesCount64(x[3]^y[3]) + bits.OnesCount64(x[4]^y[4]) + bits.OnesCount64(x[5]^y[5])
	}
	for i := range a {
		d += bits.OnesCount64(a[i] ^ b[i])
	}
	return d
}

// rescored is how many candidates of the codes get exact cosines: recall stays above .98
// as the index grows.
func rescored(vectors int) int { return min(1600, max(400, vectors/125)) }

var errNotFinite = errors.New("not a vector: zero, or not finite")

// normalized returns the vector at length one.
func normalized(vector []float32) ([]float32, error) {
	var sum float64
	for _, x := range vector {
		sum += float64(x) * float64(x)
	}
	if sum == 0 || math.IsNaN(sum) || math.IsInf(sum, 0) {
		return nil, errNotFinite
	}
	length := math.Sqrt(sum)
	if math.Abs(length-1) < 1e-6 {
		return vector, nil
	}
	out := slices.Clone(vector)
	for i := range out {
		out[i] = float32(float64(out[i]) / length)
	}
	return out, nil
}

func dot(a, b []float32) float32 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + s2 + s3
}

func encode(vector []float32) []byte {
	b := make([]byte, 0, 4*len(vector))
	for _, x := range vector {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

func decode(vector []float32, b []byte) {
	for i := range vector {
		vector[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
}

// nearest returns the n chosen slots of the highest cosines among those whose codes are
// nearest: all of them are exact, and with few chosen none is missed.
func (v *vectors) nearest(query []float32, chosen bitset, n int) ([]uint32, []float64, error) {
	slots := v.near(query, chosen, max(rescored(v.count), n+n/2))
	cos, _, err := v.cosines(query, slots)
	if err != nil {
		return nil, nil, err
	}
	order := make([]int, len(slots))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int {
		return cmp.Or(cmp.Compare(cos[y], cos[x]), cmp.Compare(slots[x], slots[y]))
	})
	order = order[:min(n, len(order))]
	bestSlots, best := make([]uint32, len(order)), make([]float64, len(order))
	for i, o := range order {
		bestSlots[i], best[i] = slots[o], cos[o]
	}
	return bestSlots, best, nil
}
