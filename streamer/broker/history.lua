-- Read a topic's position, and the publications after a position that the reader knows.
--
-- KEYS  1 position, 2 history
-- ARGV  1, 2 the epoch and sequence after which to read; 3 the most entries to read
--       4 how many of the newest to read where the topic is in another epoch
--       5 the name, without its time, of an epoch to begin where Redis has lost what it had;
--         '' where the reader cannot tell
--       6 SHA-1 of the text of the publication at the known position; '' where it is not known
--       7 '1' where Redis had a position for the topic before
--       8 and more: the kinds that have a last known value
-- Returns nothing where the topic has no position, else the epoch, the sequence, whether the known
-- position is in that epoch, and entries of sequence, kind and text, oldest first; after these,
-- where entries are missing before them, the last ones of kinds of which they have none.
--
-- Redis has lost writes (a failover, an old dump, a restart without data) where it is behind the
-- reader, or has another publication at the reader's position, or is in an older epoch than the
-- reader. The same positions would then mean two things, so a new epoch begins. Publications that
-- replaced the lost ones continue in it. Those from before the loss do not, where their time tells
-- them apart: a client would take the last of them for the one before the next publication.
--
-- The name of an epoch ends with the time at which it began, by which publish.lua and this script
-- distinguish an older epoch from a newer one. A new one is always later than the one before,
-- whatever the clock of this Redis shows.

local function field(entry, name)
  for at = 1, #entry[2], 2 do
    if entry[2][at] == name then
      return entry[2][at + 1]
    end
  end
  return ''
end

-- The time at which a script began an epoch, in milliseconds; 0 where its name does not have it.
local function began_ms(epoch)
  local digits = string.match(epoch or '', '@(%d+)$')
  return digits and #digits <= 15 and tonumber(digits) or 0
end

local function new_epoch(known)
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  return string.format('%s@%.0f', ARGV[5], math.max(now_ms, began_ms(known) + 1))
end

-- Remove the entries up to a time, in milliseconds.
local function forget_until(known_ms)
  local kept, last = nil, '+'
  while last do
    local entries = redis.call('XREVRANGE', KEYS[2], last, '-', 'COUNT', 100)
    last = nil
    for _, entry in ipairs(entries) do
      if (tonumber(field(entry, 't')) or 0) <= known_ms then
        last = nil
        break
      end
      kept, last = entry[1], '(' .. entry[1]
    end
  end
  -- A user may lack the permission for XTRIM. To forget all is then better than to keep a value from
  -- before the loss.
  local trimmed = kept and redis.pcall('XTRIM', KEYS[2], 'MINID', kept)
  if type(trimmed) ~= 'number' then
    redis.call('DEL', KEYS[2])
  end
end

local position = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
local epoch, sequence = position[1], tonumber(position[2] or 0)
local known, after = ARGV[1], tonumber(ARGV[2])
local id = string.format('%.0f', after) .. '-0'

if epoch and not sequence then
  return {epoch, position[2], 0, {}}
end
if ARGV[5] ~= '' then
  if (not epoch and ARGV[7] == '1') or (epoch == known and sequence < after) then
    epoch, sequence = new_epoch(known), 0
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[1], 'epoch', epoch, 'sequence', 0)
  elseif epoch == known and ARGV[6] ~= '' then
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    if entry and redis.sha1hex(field(entry, 'm')) ~= ARGV[6] then
      epoch = new_epoch(known)
      redis.call('HSET', KEYS[1], 'epoch', epoch)
    end
  elseif epoch and began_ms(epoch) > 0 and began_ms(epoch) < began_ms(known) then
    -- First, since a script that fails is not undone: with the new epoch in place, no later reader
    -- would forget them.
    forget_until(began_ms(known))
    epoch = new_epoch(known)
    redis.call('HSET', KEYS[1], 'epoch', epoch)
  end
end
if not epoch then
  return {}
end
local follows = epoch == known or redis.call('HGET', KEYS[1], 'was:' .. known) == epoch

local found
if follows then
  -- From the next sequence on: another program may have left entries behind the known one, such as
  -- 7-1, and a read that ends among them would be repeated for ever.
  local from = string.format('%.0f-0', after + 1)
  found = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', ARGV[3])
else
  found = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[4])
end

-- COUNT 0 is answered with nil.
found = found or {}

local entries = {}
for index, entry in ipairs(found) do
  local place = follows and index or #found + 1 - index
  entries[place] = {tonumber(string.match(entry[1], '^%d+')), field(entry, 'k'), field(entry, 'm')}
end

local last = {}
local oldest = entries[1] and entries[1][1] or math.huge
if not follows or (after < sequence and oldest ~= after + 1) then
  for at = 8, #ARGV do
    local kind = ARGV[at]
    local of, digits =
      string.match(redis.call('HGET', KEYS[1], 'last:' .. kind) or '', '^(%S+) (%d+)$')
    if of == epoch and tonumber(digits) < oldest then
      local entry = redis.call('XRANGE', KEYS[2], digits .. '-0', digits .. '-0')[1]
      if entry and field(entry, 'k') == kind then
        last[#last + 1] = {tonumber(digits), kind, field(entry, 'm')}
      end
    end
  end
end
return {epoch, sequence, follows and 1 or 0, entries, last}
