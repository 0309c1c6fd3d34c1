package classify

import (
	"context"

	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

// ListGroups implements ClassifyService: the groups in the order of the configuration, the engine's own
// ("default") last, each with the thresholds in force for it. When nothing is said to be protected, the only
// group is the engine's own, without prefixes.
func (s *Service) ListGroups(context.Context, *classifyv1.ListGroupsRequest) (*classifyv1.ListGroupsResponse, error) {
	list := s.engine.groups.list
	if all := s.engine.groups.all; all != nil {
		list = []group{*all}
	}
	r := &classifyv1.ListGroupsResponse{ConfigVersion: s.engine.version}
	for i := range list {
		g := &classifyv1.Group{Name: list[i].name, Thresholds: list[i].thresholds.Named()}
		for _, p := range list[i].prefixes {
			g.Prefixes = append(g.Prefixes, p.String())
		}
		r.Groups = append(r.Groups, g)
	}
	return r, nil
}
