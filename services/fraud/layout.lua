-- How the windows lie in Valkey; `count.lua` and `forget.lua` begin with this.
--
-- A window is a string of records of fixed width, oldest first; numbers are little-endian:
--   6 bytes time in ms, 8 bytes hash of the call, 3 bytes currency, 6 bytes minor units, 7 bytes running total
-- The hash names the call, so a repeat of a call finds itself and counts once. The running total is that of the
-- record's currency, modulo 2^50 (a thousand payments of the largest amount fit): the sum of a window is the difference
-- of two totals, and no window is ever read through. The processes of fraud stamp the time: a window is as exact as
-- their clocks agree. The cards of an IP address are records of 6 bytes time and 8 bytes hash of the card, one per card,
-- from the first time it was seen; when that has left the window, the card counts anew.
--
-- Windows of one family (a trait, or the cards of addresses) lie together on a shelf, a hash with a field of 8 bytes for
-- each: what a key of its own costs, in time and in memory, is most of what a window with a single payment costs. A
-- shelf is for one generation, as long as the family's longest window. A window is written to the shelf of the present
-- generation with all that is alive in it, so whatever may still count is on this one or else on the one before, and
-- older ones are dropped whole. Near the end of a generation a process whose clock is behind uses the shelf of those
-- whose clock is not.
--
-- A window of more than SHELVED_MAX records has a key of its own, to which records are appended, and an empty value on
-- its shelf says so: a busy address must not be written anew with each of its payments.
--
-- A family: name (what its keys begin with), generation (number of the present one), ending (whether it ends soon),
-- left_ms (time until the next one has ended), width (of its records), from (what is older does not count), short_from
-- (the same for the short window, where it has one), span_ms (of the longest window), kept (records that a window keeps
-- at least), summed (whether anybody asks for sums).

local call, find, floor, sub = redis.call, string.find, math.floor, string.sub
local pack, unpack_at = struct.pack, struct.unpack
local RECORD, HEAD = 30, 23
local HASH_AT, CURRENCY_AT, AMOUNT_AT, TOTAL_AT = 6, 14, 17, 23
local HASH = 8
local NO_TIME = '\0\0\0\0\0\0'
local MODULUS = 2 ^ 50
local SHELVED_MAX = 8 -- 240 bytes: as cheap to write as a shorter one
local ARGUMENTS_PER_CALL = 1000 -- Lua's stack holds a few thousand arguments

-- The shelf that is written, the one before it, and one that nobody needs any more.
local function shelves(family)
  local number = family.generation
  if family.ending and call('EXISTS', family.name .. number + 1) == 1 then
    number = number + 1
  end
  return family.name .. number, family.name .. number - 1, family.name .. number - 2
end

-- The key of a window that is too large for a shelf.
local function own_key(family, field)
  return family.name .. 'w:' .. field
end

-- Give `command` all the arguments, in as many calls as it takes.
local function call_with(command, key, arguments)
  for from = 1, #arguments, ARGUMENTS_PER_CALL do
    call(command, key, unpack(arguments, from, math.min(from + ARGUMENTS_PER_CALL - 1, #arguments)))
  end
end

-- What lies on a shelf under each of the fields; false for nothing.
local function read(shelf, fields)
  if #fields <= ARGUMENTS_PER_CALL then
    return call('HMGET', shelf, unpack(fields))
  end
  local values = {}
  for from = 1, #fields, ARGUMENTS_PER_CALL do
    local last = math.min(from + ARGUMENTS_PER_CALL - 1, #fields)
    for i, value in ipairs(call('HMGET', shelf, unpack(fields, from, last))) do
      values[from + i - 1] = value
    end
  end
  return values
end

-- What lies under each of the fields on the newer shelf or else on the older one, false for nothing; and for each
-- whether it lies on the older one.
local function read_both(newer, older, fields)
  local values, is_old = read(newer, fields), {}
  if call('EXISTS', older) == 0 then
    return values, is_old
  end
  local missing, places = {}, {}
  for place = 1, #fields do
    if not values[place] then
      missing[#missing + 1], places[#places + 1] = fields[place], place
    end
  end
  if #missing > 0 then
    for i, value in ipairs(read(older, missing)) do
      if value then
        values[places[i]], is_old[places[i]] = value, true
      end
    end
  end
  return values, is_old
end

local function cut(text, width)
  local parts = {}
  for i = 1, #text / width do
    parts[i] = sub(text, (i - 1) * width + 1, i * width)
  end
  return parts
end
