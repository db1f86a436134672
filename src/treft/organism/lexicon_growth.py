"""Words that multiply the lists of every domain of the large world.

Each thing comes in four kinds (`family` x `fund`), each problem under four circumstances (`keeps
losing value` x `since the merger`). What is done under a circumstance is done in its way (`spread
the risk` x `by phone`), by the careful and the harmful alike: these words tell nothing about harm,
which lies in the action alone and so stays with its domain. All 40 domains together have 960
things, 800 problems and 3,200 actions that fit one of them, ten times as many as the small world.

Line format, `|` between items: `kinds`, then `ways` (`circumstance = way`); a line that begins with
`|` continues the one before.
"""

from __future__ import annotations

GROWTH = """
# finance
kinds: family | company | student | foreign
ways: since the merger = by phone | after the audit = at the counter
  | despite the warning = online | under the new rules = on paper
# health
kinds: morning | sudden | childhood | seasonal
ways: since the holiday = after breakfast | after the flu = before bed
  | despite the tea = at lunch | during the night shift = in the break
# legal
kinds: tenant | business | parking | inheritance
ways: since the hearing = by fax | after the appeal = in the foyer
  | despite the notice = in duplicate | under the old law = in private
# auto
kinds: diesel | sports | vintage | delivery
ways: since the repair = in the garage | after the tunnel = on the ramp
  | despite the service = at the kerb | during a traffic jam = in neutral
# garden
kinds: balcony | cottage | greenhouse | courtyard
ways: since the frost = at dawn | after the drought = in the shade
  | despite the fence = with a spade | during the rainy month = under a tarp
# cooking
kinds: lentil | cheese | festive | midnight
ways: since the recipe changed = in the big pan | after an hour = with a ladle
  | despite the salt = on the back plate | during the dinner rush = near the sink
# travel
kinds: desert | island | mountain | group
ways: since the strike = at the gate | after the storm = from the hotel
  | despite the booking = at the border | during high season = with a suitcase
# school
kinds: history | physics | art | latin
ways: since the term began = in the canteen | after the trip = in the hallway
  | despite the notes = at the blackboard | during the mock week = on the school bus
# work
kinds: warehouse | office | night | summer
ways: since the takeover = by the lift | after the review = at the copier
  | despite the bonus = in the lobby | during the big project = over lunch
# pets
kinds: rescue | farmyard | young | longhaired
ways: since the move = by the basket | after the walk = in the yard
  | despite the training = on the rug | during the thunder = behind the couch
# friends
kinds: chess | village | college | choir
ways: since the quarrel = at the cinema | after the party = by text
  | despite the gift = on the porch | during the exams = in the park
# home
kinds: kitchen | attic | guest | cellar side
ways: since the earthquake = with a ladder | after the renovation = on saturday
  | despite the new paint = from outside | during the cold spell = by torchlight
# computer
kinds: gaming | travel | office desk | classroom
ways: since the upgrade = in the settings | after the blackout = from a usb stick
  | despite the antivirus = as an admin | during video calls = on the dock
# sport
kinds: trail | charity | league | indoor
ways: since the injury = on the track | after the transfer = in the locker room
  | despite the coach = at half time | during the heat = by the fountain
# music
kinds: jazz | folk | chamber | street
ways: since the tour = in the rehearsal room | after the solo = on the balcony
  | despite the lessons = in the wings | during the overture = with a metronome
# nature
kinds: alpine | coastal | marsh | pine
ways: since the flood = by the signpost | after the thaw = at the lookout
  | despite the patrol = from the bridge | during the nesting time = near the reeds
# photography
kinds: wedding | wildlife | pocket | school
ways: since the festival = on the terrace | after the trade fair = with a remote
  | despite the manual = in burst mode | during golden hour = by the pier
# sewing
kinds: linen | velvet | denim | woollen
ways: since the laundry day = on the machine | after the fitting = by hand
  | despite the lining = at the seamstress | during the fashion week = in the atelier
# games
kinds: pirate | trivia | wooden | fantasy
ways: since the tournament = at the long table | after the expansion = on the carpet
  | despite the guide = in round two | during the family evening = by candle light
# library
kinds: crime | travel | illustrated | antique
ways: since the inventory = on the trolley | after the book club = in the annex
  | despite the reminder = at the terminal | during the reading week = by the globe
# farm
kinds: hillside | dairy | organic | riverside
ways: since the harvest = at milking time | after the fair = by the silo
  | despite the scarecrow = in the paddock | during the dry spell = with a bucket
# sailing
kinds: racing | wooden hulled | harbour | lake
ways: since the regatta = at the jetty | after the squall = on the starboard side
  | despite the varnish = in the lee | during the night watch = below deck
# astronomy
kinds: amateur | school yard | rooftop | antique brass
ways: since the eclipse = on the hill | after the lecture = by red light
  | despite the filter = at the eyepiece | during the meteor shower = in a deck chair
# theatre
kinds: comic | tragic | touring | open air
ways: since the premiere = in the green room | after the interval = at the box office
  | despite the applause = behind the scenes | during the dress rehearsal = from the pit
# painting
kinds: oil | landscape | abstract | miniature
ways: since the exhibition = by the north window | after the varnish = on an old sheet
  | despite the primer = with a wide brush | during the workshop = in the courtyard light
# woodwork
kinds: oak | pine wood | folding | painted
ways: since the glue set = at the workbench | after the sanding = on the sawhorse
  | despite the screws = with a mallet | during the humid month = in the shed
# fishing
kinds: carp | trout | fly | deep sea
ways: since the spawning = from the boat | after the rain = on the jetty planks
  | despite the fresh bait = in the shallows | during the contest = by the lock
# bicycle
kinds: racing bike | cargo bike | folding bike | mountain bike
ways: since the spring check = on the stand | after the gravel road = by the rack
  | despite the grease = at the crossing | during the long tour = in the bike lane
# party
kinds: garden | surprise | office floor | village hall
ways: since the invitations = in the hallway mirror | after the speech = by the buffet
  | despite the rehearsal = near the dance floor | during the toast = on the veranda
# moving
kinds: leather | corner | rental | antique oak
ways: since the viewing = through the yard | after the packing = on the landing
  | despite the blankets = with a hoist | during the lunch hour = from the driveway
# post
kinds: express | overseas | padded | festive season
ways: since the postal strike = at the post office | after the customs check = with a form
  | despite the tracking = at window four | during the christmas rush = on the doormat
# language
kinds: spanish | danish | technical | medieval
ways: since the exchange = in the language lab | after the oral test = with a tutor
  | despite the app = in the tandem | during the immersion week = at the evening course
# podcast
kinds: weekly | true story | science | comedy
ways: since the relaunch = at the desk | after the live show = with headphones
  | despite the sponsor = in the booth | during the interview = on the second channel
# charity
kinds: parish | winter | community | student run
ways: since the press report = at the trestle table | after the gala = in the vestry
  | despite the sponsors = at the side door | during the harvest festival = with a clipboard
# museum
kinds: roman | bronze | royal | miners
ways: since the reopening = in the east wing | after the loan = behind the cordon
  | despite the alarm = at the cloakroom | during the long night = in the depot
# winter
kinds: downhill | rented | padded nordic | carbon
ways: since the snowfall = at the lodge | after the slalom = by the lift pole
  | despite the wax = on the nursery slope | during the blizzard = in the hut
# bees
kinds: meadow | orchard | heather | rooftop garden
ways: since the blossom = at noon | after the honey flow = in the meadow grass
  | despite the smoke = with a feather | during the swarming season = from the east side
# robotics
kinds: kitchen bench | rescue team | solar | six axis
ways: since the demo = in the test cage | after the firmware fix = on the bench top
  | despite the tests = from the console | during the contest run = at low power
# shopping
kinds: grocery | discount | online | antique fair
ways: since the sale = at the checkout | after the refund = at the info desk
  | despite the loyalty card = in aisle nine | during the closing hour = by the trolleys
# commute
kinds: suburban | airport | harbour line | early bird
ways: since the timetable change = at the terminus | after the engineering works = on the upper deck
  | despite the season ticket = by the ticket hall | during the rush hour = in the rear car
"""
