--- Make a job known again after Redis lost it: as submit, with the states PostgreSQL can vouch for.
-- Needs    birth
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  states, one byte a recipient
-- ARGV[4]  cursor    ARGV[5]  how many of the following belong to the counters
-- ARGV[6…]           counters as name, value; then the hash as name, value
-- Writes   as submit
-- Returns  as submit
-- Repeat   an existing job is told and left
-- Cost     O(recipients) in one string operation
local counters, fields = {}, {}
for i = 6, #ARGV do
  local into = i < 6 + num(ARGV[5]) and counters or fields
  into[#into + 1] = ARGV[i]
end
return birth(ARGV[2], fields, ARGV[3], num(ARGV[4]), counters)
