package api

// ListInput says what a list does and where its entries are from.
type ListInput struct {
	Kind    string `json:"kind,omitempty" enum:"cidr,domain" doc:"what the entries are: addresses and prefixes of sources, or domains that flows name; of a new list cidr if absent, and it stays"`
	Action  string `json:"action" enum:"allow,drop,rate-limit,count" doc:"what happens to packets whose source is listed, or of flows whose host is; an allow list exempts from the other lists of its kind; rate-limit is for domains"`
	RatePPS uint64 `json:"rate_pps,omitempty" doc:"packets a second, for rate-limit, of each direction of a flow"`
	RateBPS uint64 `json:"rate_bps,omitempty" doc:"bits a second, for rate-limit, of each direction of a flow"`
	URL     string `json:"url,omitempty" maxLength:"2048" doc:"where a gateway reads the entries, by HTTPS; absent: they are uploaded. Every viewer sees it"`
	Every   string `json:"every,omitempty" maxLength:"32" doc:"how often url is read, 1m to 168h; 1h if absent" example:"1h"`
	Comment string `json:"comment,omitempty" maxLength:"200" doc:"why"`
}

// List is a list and what each node has made of it.
type List struct {
	Name      string         `json:"name"`
	Kind      string         `json:"kind" enum:"cidr,domain"`
	Action    string         `json:"action"`
	RatePPS   uint64         `json:"rate_pps,omitempty"`
	RateBPS   uint64         `json:"rate_bps,omitempty"`
	URL       string         `json:"url,omitempty"`
	Every     string         `json:"every,omitempty"`
	Comment   string         `json:"comment,omitempty"`
	Hosts     uint64         `json:"hosts" doc:"single addresses"`
	Prefixes  uint64         `json:"prefixes"`
	Domains   uint64         `json:"domains"`
	Rejected  uint64         `json:"rejected" doc:"lines that are no entry of the list's kind"`
	Examples  []RejectedLine `json:"examples,omitempty" doc:"the first of them"`
	CreatedNs Nanos          `json:"created_ns"`
	UpdatedNs Nanos          `json:"updated_ns,omitempty" doc:"when the entries changed last"`
	CheckedNs Nanos          `json:"checked_ns,omitempty" doc:"when url was asked last"`
	Problem   string         `json:"problem,omitempty" doc:"why the last reading of url failed; the entries before it stay"`
	Revision  string         `json:"revision"`
	Nodes     []ListNode     `json:"nodes" doc:"empty in listings"`
}

// RejectedLine is a line of a list that was left out.
type RejectedLine struct {
	Line   uint64 `json:"line"`
	Text   string `json:"text"`
	Reason string `json:"reason"`
}

// ListNode is what one node has made of a list: an enforce node of addresses, a classifier of domains.
type ListNode struct {
	Node      string            `json:"node"`
	State     string            `json:"state" enum:"loading,active,shadow,paused,failed,unknown" doc:"paused: by panic; unknown: the node does not answer"`
	Entries   uint64            `json:"entries" doc:"in force"`
	Refused   map[string]uint64 `json:"refused,omitempty" doc:"entries that are not, by reason"`
	Examples  []string          `json:"examples,omitempty" doc:"the first of them"`
	Packets   uint64            `json:"packets"`
	Bytes     uint64            `json:"bytes"`
	Dropped   uint64            `json:"dropped"`
	Flows     uint64            `json:"flows,omitempty" doc:"of domains: flows that named a listed host since the classifier started"`
	Ruled     uint64            `json:"ruled,omitempty" doc:"of them, those that rules were made for"`
	Problem   string            `json:"problem,omitempty"`
	AppliedNs Nanos             `json:"applied_ns,omitempty" doc:"when its entries came into the maps"`
}

// MaxList is the largest text of a list's entries in bytes.
const MaxList = 64 << 20

// ListType is the media type of a list's entries: one a line.
const ListType = "text/plain"
